"""torch files, names kept."""
