"""Pickles: read by a machine that imports nothing, and written as CPython writes them."""
