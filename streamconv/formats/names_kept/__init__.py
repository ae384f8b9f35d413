"""Targets that keep the names of a model's tensors, whatever model it is."""
