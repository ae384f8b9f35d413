"""What a source or a target says of itself: facts with their evidence, and what is left behind, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Dropped", "Fact"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something that is deliberately not converted, and why."""

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact about a source or a target, and the evidence for it."""

    what: str
    evidence: str
