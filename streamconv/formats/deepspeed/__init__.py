"""Megatron-DeepSpeed's folders."""
