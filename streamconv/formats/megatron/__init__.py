"""Megatron-LM's folders: legacy, and Megatron-Core's."""
