"""Values as messages show them: short, and on one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

__all__ = ["FLAG", "as_shown", "as_written", "with_flags"]

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
"""A flag in a message."""


class _Short(Repr):
    """The representation of a value that may be long, or have none."""

    def __init__(self) -> None:
        super().__init__()
        self.maxother = self.maxlong = self.maxstring = 60

    def repr_int(self, x: int, level: int) -> str:
        """Python writes no number of more than 4300 digits."""
        return f"<a number of {x.bit_length()} bits>" if x.bit_length() > 400 else super().repr_int(x, level)


_SHORT = _Short()


def as_shown(value: Any) -> str:
    """A value as a message shows it: short, on one line."""
    words = (value or "''") if isinstance(value, str) else _SHORT.repr(value)
    words = words.encode("unicode_escape").decode("ascii") if not words.isprintable() else words
    return words if len(words) <= 60 else f"{words[:57]}..."


def as_written(value: Any) -> str:
    """The same as Python has it: text in quotes."""
    return repr(as_shown(value)) if isinstance(value, str) and value else as_shown(value)


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message with other flags in the place of some."""
    return FLAG.sub(lambda match: flags.get(match[0], match[0]), text)
