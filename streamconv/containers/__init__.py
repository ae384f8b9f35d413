"""File formats that hold tensors, as frameworks write them: opened without executing them, and written."""
