"""Looking at the elements of many tensors inside a budget: reading, comparing, statistics."""
