"""Container formats: bytes only. A module here knows one way to keep tensors in a file, and no framework."""
