"""Refusals by name: families and DeepSpeed folders that are not translated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.core.errors import UnsupportedError
from streamconv.formats.common.refusals import refusal_of, titles
from streamconv.formats.deepspeed.forks import FORKS
from streamconv.models.family import ModelFamily

__all__ = ["families", "refusal", "refuse_plain_deepspeed"]


def refusal(family: ModelFamily) -> str | None:
    """Why no fork of Megatron-DeepSpeed runs a family, None if one does."""
    return refusal_of("Megatron-DeepSpeed", family, *(fork.runs for fork in FORKS.values()))


def families() -> str:
    """The families that are translated from and to Megatron-DeepSpeed's folders, for a message."""
    return titles(refusal)


def refuse_plain_deepspeed(folder: Path, names: Sequence[str], state: Mapping[str, Any]) -> None:
    """Refuse a DeepSpeed folder without layer files and without a Megatron module, or no DeepSpeed folder at all.

    Raises:
        UnsupportedError: the folder is one of these.
    """
    module = state.get("module")
    if isinstance(module, dict) and isinstance(module.get("language_model"), dict):
        return
    if any(n.startswith("zero_pp_rank_") and n.endswith("_model_states.pt") for n in names):
        what = "a plain DeepSpeed ZeRO stage 3 folder: its parameters are flat partitions in the optimizer files"
    elif any(n.endswith("_optim_states.pt") for n in names) or state:
        what = "a plain DeepSpeed ZeRO folder: a model that is not Megatron's, without layer files"
    else:
        what = "not a Megatron-DeepSpeed checkpoint: no layer_*-model_states.pt and no mp_rank_*_model_states.pt"
    raise UnsupportedError(
        what,
        where=folder,
        remedy="give the root of a Megatron-DeepSpeed checkpoint (the folder with `latest`), or its tag folder",
    )
