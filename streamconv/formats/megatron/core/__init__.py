"""Megatron-Core's checkpoints: ``torch_dist``, and ``torch``, a file for each rank."""
