"""The frameworks' checkpoints: which files there are, who owns what, and what it is called."""
