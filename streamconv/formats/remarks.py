"""What a source or a target says of itself: facts with their evidence, and what is left behind, with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

__all__ = ["Dropped", "Fact", "Remarked"]

M = TypeVar("M", bound="Remarked")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Remarked:
    """A model of a source with remarks on it: facts, warnings, and what is left behind."""

    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()

    def noting(
        self: M, *, facts: Iterable[Fact] = (), warnings: Iterable[str] = (), dropped: Iterable[Dropped] = ()
    ) -> M:
        """The same model with these facts, warnings and dropped items added."""
        return replace(
            self,
            facts=(*self.facts, *facts),
            warnings=(*self.warnings, *warnings),
            dropped=(*self.dropped, *dropped),
        )
