"""The kinds of values that are sizes of memory or of files."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from streamconv.core.kinds import InvalidValue, Text, kind_of, plain
from streamconv.memory.budget import parse_size, read_budget, refuse_beyond

__all__ = ["Budget", "SizeText"]


class SizeText(Text):
    """A size such as ``8M`` or ``5GB``, or a number of bytes. The value is the text."""

    python = "str | int"

    def __init__(self, parse: Callable[[str], object] = parse_size) -> None:
        super().__init__("SIZE")
        self._parse = parse

    def check(self, value: Any) -> str:
        """As :meth:`ValueKind.check`."""
        said = plain(value)
        if hasattr(type(said), "__index__") and not isinstance(said, bool):
            number = operator.index(said)
            if number < 0:
                raise InvalidValue("not a size", "write 8M or 512K")
            refuse_beyond(number)
            said = str(number)
        if not isinstance(said, str):
            raise InvalidValue(f"{kind_of(said)}, not a size", "write 8M or 512K, or a number of bytes")
        self._parse(said)
        return said


class Budget(SizeText):
    """A memory budget: a size, ``50%`` or ``auto``. The value is the text: ``auto`` is measured when it is used."""

    def __init__(self) -> None:
        super().__init__(read_budget)
