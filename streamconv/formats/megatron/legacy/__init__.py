"""Megatron-LM's legacy checkpoints."""
