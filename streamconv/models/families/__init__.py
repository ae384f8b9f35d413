"""Model families, a module each: a family knows parameters and axes, and no bytes."""
