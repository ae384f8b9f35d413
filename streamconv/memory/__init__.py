"""The memory budget, and the threads and blocks that fit it."""
