"""A conversion as moves of bytes: jobs, and the tiles that they are cut into."""
