"""The memory budget, and what may be asked for within it."""
