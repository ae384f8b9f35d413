"""bigscience's three commands, by their own names and with their own output."""
