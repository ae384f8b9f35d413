"""The command line: one module a verb, thin over :mod:`streamconv.api`."""
