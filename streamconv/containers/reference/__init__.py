"""The formats' own readers, as a second witness of what a file holds: none of them runs what a file names."""
