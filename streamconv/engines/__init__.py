"""Ways to run a plan's jobs. An engine sees files, offsets and bytes; it never sees a name of a model."""
