"""The verbs, for the command line and for Python: both give options, and get results that show themselves."""
