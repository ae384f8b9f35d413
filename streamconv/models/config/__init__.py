"""The entries of a ``config.json``, and the training arguments that mean the same."""
