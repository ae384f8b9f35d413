"""What an inspection found, drawn: one HTML page, or one PNG. Both read the plain data that ``--json`` prints."""
