"""What Megatron-LM's legacy model cannot hold."""

from __future__ import annotations

from streamconv.formats.common.refusals import titles
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import Section

__all__ = ["families", "refusal"]


def refusal(family: ModelFamily) -> str | None:
    """Why Megatron-LM's legacy model, or the fork of it that BLOOM was trained with, cannot run a family.

    [``megatron/legacy/model/transformer.py`` of core_v0.17: no parallel residual, no norms of queries and keys]
    """
    keys = family.keys(Section.LAYER)
    if family.name == "gpt_neox":
        return "Megatron-LM's legacy model has no parallel residual"
    if any("q_layernorm" in key for key in keys):
        return "Megatron-LM's legacy model has no norms of queries and keys"
    return None


def families() -> str:
    """The families that such folders can be of, for a message."""
    return titles(refusal)
