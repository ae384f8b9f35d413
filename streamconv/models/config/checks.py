"""The values of entries of a configuration: what is allowed, and what follows from other entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

__all__ = [
    "Check",
    "Rule",
    "count",
    "default_of",
    "flag",
    "number",
    "positive",
    "quotient",
    "same_as",
    "shown",
    "text",
    "times",
]

Check = Callable[[str, Any], Any]
"""Gives the value of an entry back, or raises ValueError with the entry's name."""

Rule = Callable[[Mapping[str, Any]], Any]
"""An entry as a function of others."""


_LARGEST = 1 << 63


def _is_finite(value: float) -> bool:
    """Whether it is a number that a float can be: a JSON file may have digits without end."""
    try:
        return isfinite(value)
    except OverflowError:
        return False


# repr refuses numbers of more than 4300 digits.
_MOST_BITS = 10000


def shown(value: Any) -> str:
    """A value as a message shows it, a word in quotes and a number without."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:40]


def count(name: str, value: Any) -> int:
    """A whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _LARGEST:
        raise ValueError(f"{name} is {shown(value)}, not a number above 0")
    return value


def number(name: str, value: Any) -> float | int:
    """A finite number that is not negative."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value) or value < 0:
        raise ValueError(f"{name} is {shown(value)}, not a number")
    return value


def positive(name: str, value: Any) -> float | int:
    """A finite number above 0."""
    checked = number(name, value)
    if not checked:
        raise ValueError(f"{name} is {shown(value)}, not a number above 0")
    return checked


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if value is not True and value is not False:
        raise ValueError(f"{name} is {shown(value)}, neither true nor false")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A word."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, not a word")  # noqa: TRY004 - one class for all values
    return value


def same_as(name: str) -> Rule:
    """The default is another entry."""
    return lambda known: known[name]


def times(factor: int, name: str) -> Rule:
    """The default is a multiple of another entry."""
    return lambda known: factor * known[name]


def quotient(name: str, divisor: str) -> Rule:
    """The default is one entry over another, rounded down."""
    return lambda known: known[name] // known[divisor]


def default_of(default: Any, known: Mapping[str, Any]) -> Any:
    """A default: a value as it is, or what a function makes of the entries that are known."""
    return default(known) if callable(default) else default
