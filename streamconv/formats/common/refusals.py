"""Refusals by name: families that a framework does not run, and folders of a kind that is not translated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from streamconv.core.errors import UnsupportedError
from streamconv.models.family import ModelFamily
from streamconv.models.mechanisms import Mechanism, in_words
from streamconv.models.registry import known_families

__all__ = ["Run", "Runs", "refusal_of", "refuse_keys", "titles"]


@dataclass(frozen=True, slots=True)
class Run:
    """Where a framework's code runs a mechanism: the first release that does, or the commit that was read; the file."""

    code: str
    where: str


Runs = Mapping[Mechanism, Run]
"""The mechanisms that one code runs, as far as its checkpoints are translated: the target can write each of them."""


def refusal_of(who: str, family: ModelFamily, *codes: Runs) -> str | None:
    """Why no code of a framework runs a family, in the words of the mechanisms that it lacks; None if one runs it.

    Args:
        who: the framework, for the message.
        family: it may have mechanisms that were unknown when the codes were listed.
        codes: the mechanisms that each code of the framework runs; the message names the code that lacks fewest.
    """
    missing = min((family.mechanisms - runs.keys() for runs in codes), key=len)
    return f"{who} has {in_words(missing)}" if missing else None


def titles(refusal: Callable[[ModelFamily], str | None]) -> str:
    """The families that a format does not refuse, for a message."""
    return ", ".join(family.title for family in known_families() if refusal(family) is None)


def refuse_keys(keys: Collection[str], path: Path, families: str) -> None:
    """Refuse a family or mechanism that the keys of one layer show, by name.

    Args:
        keys: the keys of the layer.
        path: its file, for the message.
        families: the titles of the families that are translated from such folders.

    Raises:
        UnsupportedError: the keys show one.
    """
    neox = ("attention.", "final_linear.", "norm.")
    kinds = (
        ("GPT-NeoX without its layer_00 files", any(k.startswith(neox) for k in keys)),
        ("a mixture of experts (MoE)", any("deepspeed_moe" in k or ".experts." in k or "gate.wg" in k for k in keys)),
    )  # fmt: skip
    for name, matches in kinds:
        if matches:
            raise UnsupportedError(
                f"{name}: not translated", where=path, remedy=f"families so far in such folders: {families}"
            )
