"""What bigscience's two inspectors print, made from metadata alone."""
