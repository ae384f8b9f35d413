"""From a stored model and what is asked for to a plan: every byte of every file of the result."""
