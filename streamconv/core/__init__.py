"""What everything is made of: lazy tensors and the proof that they cover their sources, layouts, dtypes, errors."""
