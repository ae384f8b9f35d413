"""What the exit codes mean; each class of :mod:`streamconv.core.errors` has its own."""

from __future__ import annotations

__all__ = ["EXIT_CODES", "exit_codes_text"]

EXIT_CODES = (
    (0, "done"),
    (1, "unexpected: a bug"),
    (2, "usage"),
    (3, "source not found or not supported, or not compared"),
    (4, "memory budget or disk too small"),
    (5, "I/O error"),
    (6, "input damaged or unsafe"),
    (7, "values differ"),
    (8, "destination in use"),
    (129, "the terminal is gone (SIGHUP)"),
    (130, "interrupted (Ctrl-C)"),
    (143, "terminated (SIGTERM)"),
)


def exit_codes_text() -> str:
    """One line with all of them."""
    return f"Exit codes: {', '.join(f'{code} {what}' for code, what in EXIT_CODES)}."
