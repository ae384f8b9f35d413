"""Which family can go to which target, or why not."""

from __future__ import annotations

from streamconv.errors import UnsupportedError, UsageError
from streamconv.families.base import ModelFamily

__all__ = ["TARGETS", "choose_target"]

TARGETS = ("megatron", "megatron-legacy")

_NO_CORE = {
    "bloom": "Megatron-Core has no ALiBi and no embedding norm, so it cannot hold BLOOM",
    "gpt": "the newest Megatron layout that is written so far",
}


def choose_target(wanted: str, family: ModelFamily) -> tuple[str, str]:
    """(target format, why) for what the user asked for.

    Raises:
        UsageError: there is no such target.
        UnsupportedError: the family cannot be held by the target.
    """
    if wanted not in TARGETS:
        raise UsageError(f"--to {wanted}: no such target", remedy=f"choose one of {', '.join(TARGETS)}")
    if family.name not in _NO_CORE:
        raise UnsupportedError(f"{family.title} to {wanted}: not a conversion that is written yet")
    return "megatron-legacy", "asked for" if wanted == "megatron-legacy" else _NO_CORE[family.name]
