"""Reading and writing bytes of files: past the page cache, durably, with checksums."""
