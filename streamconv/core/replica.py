"""Copies of one parameter that should be equal."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.lazy import LazyTensor

__all__ = ["Replica"]


@dataclass(frozen=True, slots=True)
class Replica:
    """A parameter that several ranks hold a copy of, to be compared before the first write.

    ``original`` names what the second of two copies must equal where they are no ranks' copies: that is written.
    ``must_equal`` refuses a difference whatever the policy says.
    """

    name: str
    copies: tuple[LazyTensor, ...]
    original: str | None = None
    must_equal: bool = False
