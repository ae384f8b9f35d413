"""Refusals by name: families and DeepSpeed folders that are not translated."""

from __future__ import annotations

from collections.abc import Mapping
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


def refuse_plain_deepspeed(folder: Path, state: Mapping[str, Any]) -> None:
    """Refuse a DeepSpeed folder without layer files and without a Megatron module.

    Raises:
        UnsupportedError: the folder is one of these.
    """
    module = state.get("module")
    if not (isinstance(module, dict) and isinstance(module.get("language_model"), dict)):
        raise UnsupportedError(
            "no layer_*-model_states.pt, and no Megatron module in mp_rank_*_model_states.pt", where=folder
        )
