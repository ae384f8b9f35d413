"""Framework folder layouts: which files make a checkpoint, and which rank owns what."""
