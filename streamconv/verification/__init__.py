"""Comparing two checkpoints, tensor by tensor."""
