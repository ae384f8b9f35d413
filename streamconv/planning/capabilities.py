"""Which families are converted from which sources to which targets, or why not; and the choice of a target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streamconv.core.errors import UnsupportedError
from streamconv.core.result import Result
from streamconv.formats.registry import known_sources, known_targets
from streamconv.formats.source import SourceFormat
from streamconv.formats.target import TargetFormat
from streamconv.models.family import ModelFamily
from streamconv.models.registry import known_families
from streamconv.planning.options import NEWEST, NOWHERE

__all__ = ["Capability", "FamilyTable", "capability_table", "find_target", "reason_for"]

# The Megatron layouts that are written, the newest first.
_MEGATRON = ("megatron-core", "megatron-legacy")


@dataclass(frozen=True, slots=True)
class Capability:
    """One family from one source to one target; ``refusal`` is why it cannot be converted, None if it can."""

    family: ModelFamily
    source: SourceFormat
    target: TargetFormat
    refusal: str | None

    def __reduce__(self) -> tuple[object, ...]:
        # Families and formats have functions, which go to no other process; each of them is there by its name.
        return _capability, (self.family.title, self.source.name, self.target.name, self.refusal)


def _capability(family: str, source: str, target: str, refusal: str | None) -> Capability:
    """One of the table, by names."""
    return Capability(
        next(each for each in known_families() if each.title == family),
        next(each for each in known_sources() if each.name == source),
        next(each for each in known_targets() if each.name == target),
        refusal,
    )


@dataclass(frozen=True, slots=True, repr=False)
class FamilyTable(Result):
    """Every family from every source to every target."""

    cells: tuple[Capability, ...]


def capability_table() -> Iterator[Capability]:
    """Every family from every source to every target."""
    for family in known_families():
        for source in (source for source in known_sources() if source.holds_models):
            for target in known_targets():
                yield Capability(family, source, target, source.refusal(family) or target.refusal(family))


def find_target(wanted: str, family: ModelFamily | None = None) -> TargetFormat:
    """The format that ``--to`` names; for ``megatron`` the newest layout that can hold the family, if that is known."""
    targets = {target.name: target for target in known_targets()}
    if wanted not in (NEWEST, NOWHERE):
        return targets[wanted]
    layouts = [targets[name] for name in _MEGATRON]
    holds = [target for target in layouts if family is None or target.refusal(family) is None]
    return (holds or layouts)[0]


def reason_for(target: TargetFormat, wanted: str, family: ModelFamily) -> str:
    """Why this target was chosen for the user's ``--to``, in words.

    Raises:
        UnsupportedError: the target cannot hold the family.
    """
    refusal = target.refusal(family)
    if refusal is not None:
        works = [other.name for other in known_targets() if other.refusal(family) is None and not other.keeps_names]
        raise UnsupportedError(
            f"{family.title} cannot go to {target.name}: {refusal}",
            remedy=f"targets that can hold it: {', '.join(works)}",
        )
    if wanted not in (NEWEST, NOWHERE):
        return "asked for"
    newest = find_target(NEWEST)
    if target is newest:
        return "the newest Megatron layout"
    return f"the newest Megatron layout that can run it: {newest.refusal(family)}"
