"""The engines: one module each, holding an ``ENGINE``."""
