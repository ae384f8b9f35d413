"""Which family can go to which target, or why not."""

from __future__ import annotations

from streamconv.errors import UsageError
from streamconv.families.base import ModelFamily
from streamconv.formats import known_targets
from streamconv.formats.base import TargetFormat

__all__ = ["choose_target", "target_names"]

NEWEST = "megatron"
# The Megatron layouts that are written, the newest first, and what each cannot hold of a model and why.
_MEGATRON = ("megatron-legacy",)
_WHY_LEGACY = {
    "alibi": "the newest Megatron layout that can hold it: Megatron-Core has no ALiBi and no embedding norm",
    "learned": "the newest Megatron layout that is written so far",
}


def target_names() -> tuple[str, ...]:
    """What ``--to`` takes."""
    return (NEWEST, *(target.name for target in known_targets()))


def choose_target(wanted: str, family: ModelFamily) -> tuple[TargetFormat, str]:
    """(target format, why) for what the user asked for.

    Raises:
        UsageError: there is no such target.
    """
    if wanted not in target_names():
        raise UsageError(f"--to {wanted}: no such target", remedy=f"choose one of {', '.join(target_names())}")
    name = _MEGATRON[0] if wanted == NEWEST else wanted
    target = next(target for target in known_targets() if target.name == name)
    return target, _WHY_LEGACY[family.positions] if wanted == NEWEST else "asked for"
