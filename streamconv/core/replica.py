"""Copies of one parameter that should be equal."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.lazy import LazyTensor

__all__ = ["Replica"]


@dataclass(frozen=True, slots=True)
class Replica:
    """A parameter that several ranks hold a copy of, to be compared before the first write.

    If the two copies are not those of ranks, ``original`` names the first of them, which is the one that is written.
    ``must_equal`` makes any difference an error with ``remedy``, whatever the policy.
    """

    name: str
    copies: tuple[LazyTensor, ...]
    original: str | None = None
    must_equal: bool = False
    remedy: str | None = None
