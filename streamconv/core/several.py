"""The kinds of values that are given several times, each with the same flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamconv.core.kinds import InvalidValue, Text, ValueKind, kind_of

__all__ = ["Renames", "Texts"]


class Texts(Text):
    """Some texts that are not empty; on the command line each with a flag of its own."""

    python = "str | Sequence[str]"
    many = True

    def check(self, value: Any) -> Any:
        """As :meth:`ValueKind.check`."""
        if isinstance(value, str):
            return (super().check(value),)
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise InvalidValue(f"{kind_of(value)}, neither text nor a list of it")
        return tuple(Text(self.metavar).check(each) for each in value)


class Renames(ValueKind):
    """Patterns with ``*`` and the names that what they match is to have, as ``PATTERN=NAME``."""

    metavar = "PATTERN=NAME"
    python = "str | Sequence[str] | Mapping[str, str]"
    many = True

    def check(self, value: Any) -> Any:
        """As :meth:`ValueKind.check`."""
        if isinstance(value, Mapping):
            return tuple(_rename(pattern, name) for pattern, name in value.items())
        if isinstance(value, str):
            return (_pair(value),)
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise InvalidValue(f"{kind_of(value)}, no mapping of patterns to names")
        return tuple(_pair(each) for each in value)


def _pair(said: Any) -> tuple[str, str]:
    if isinstance(said, str):
        pattern, _, name = said.partition("=")
        return _rename(pattern, name)
    if not isinstance(said, tuple) or len(said) != 2:
        raise InvalidValue(f"{kind_of(said)}, not PATTERN=NAME")
    return _rename(*said)


def _rename(pattern: Any, name: Any) -> tuple[str, str]:
    if not isinstance(pattern, str) or not isinstance(name, str) or not pattern or not name:
        raise InvalidValue("not PATTERN=NAME")
    if pattern.count("*") < name.count("*"):
        raise InvalidValue(f"{name} has more * than {pattern}", "each * of the name is one of the pattern's, in order")
    return pattern, name
