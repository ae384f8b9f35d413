"""Checks of the entries of a configuration, and defaults that are computed from other entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from streamconv.core.text import shown

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
    "text",
    "times",
]

Check = Callable[[str, Any], Any]
"""Returns the value of an entry, or raises ValueError with the entry's name."""

Rule = Callable[[Mapping[str, Any]], Any]
"""Computes an entry from the known ones."""


_LARGEST = 1 << 63


def _is_finite(value: float) -> bool:
    """Whether the number is finite and fits a float: JSON allows integers of any length."""
    try:
        return isfinite(value)
    except OverflowError:
        return False


def count(name: str, value: Any) -> int:
    """The value, which must be a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _LARGEST:
        raise ValueError(f"{name} is {shown(value)}, not a number above 0")
    return value


def number(name: str, value: Any) -> float | int:
    """The value, which must be a finite number that is not negative."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value) or value < 0:
        raise ValueError(f"{name} is {shown(value)}, not a number")
    return value


def positive(name: str, value: Any) -> float | int:
    """The value, which must be a finite number above 0."""
    checked = number(name, value)
    if not checked:
        raise ValueError(f"{name} is {shown(value)}, not a number above 0")
    return checked


def flag(name: str, value: Any) -> bool:
    """The value, which must be true or false."""
    if value is not True and value is not False:
        raise ValueError(f"{name} is {shown(value)}, neither true nor false")
    return bool(value)


def text(name: str, value: Any) -> str:
    """The value, which must be a string."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, not a word")  # noqa: TRY004 - one class for all values
    return value


def same_as(name: str) -> Rule:
    """A rule: the same value as another entry."""
    return lambda known: known[name]


def times(factor: int, name: str) -> Rule:
    """A rule: a multiple of another entry."""
    return lambda known: factor * known[name]


def quotient(name: str, divisor: str) -> Rule:
    """A rule: one entry divided by another, rounded down."""
    return lambda known: known[name] // known[divisor]


def default_of(default: Any, known: Mapping[str, Any]) -> Any:
    """The value of a default: a rule is applied to the known entries, anything else is returned as it is."""
    return default(known) if callable(default) else default
