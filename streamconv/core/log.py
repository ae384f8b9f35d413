"""The logger ``streamconv``: what a run does, for whoever listens. Without a listener nothing is printed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

__all__ = ["WORDS", "log", "warn_of"]

log = logging.getLogger("streamconv")
log.addHandler(logging.NullHandler())

WORDS: ContextVar[Callable[[str], str]] = ContextVar("words", default=str)
"""What makes of a message the words of its reader."""


def warn_of(place: object, words: str) -> None:
    """Log a warning about a file or a folder, in the words of whoever called."""
    log.warning("%s: %s", place, WORDS.get()(words))
