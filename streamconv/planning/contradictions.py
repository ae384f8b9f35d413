"""Contradictions between training arguments and a family's mechanisms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamconv.core.text import shown
from streamconv.models import mechanisms as made_of
from streamconv.models.family import ModelFamily

__all__ = ["contradictions"]

# megatron/enums.py of bigscience-workshop/Megatron-DeepSpeed: class PositionEmbeddingType.
_POSITION_ENUM = {1: made_of.ROTARY, 2: made_of.LEARNED, 3: made_of.ALIBI}
_NORMS = {
    **dict.fromkeys(("layernorm", "LayerNorm"), made_of.LAYERNORM),
    **dict.fromkeys(("rmsnorm", "RMSNorm"), made_of.RMSNORM),
}


def contradictions(family: ModelFamily, args: Mapping[str, Any]) -> Iterator[str]:
    """Mechanisms that the arguments require and the family lacks, and those that it has and they deny; in words."""
    has = family.mechanisms.__contains__
    experts = args.get("num_experts")
    if any(isinstance(count, int) and count > 1 for count in (experts if isinstance(experts, list) else [experts])):
        yield "a mixture of experts (MoE)"
    gated = "swiglu" if args.get("swiglu") else args.get("glu_activation")
    if gated and not (has(made_of.SWIGLU) and gated == "swiglu"):
        yield f"a gated linear unit (GLU: {gated})"
    if has(made_of.SWIGLU) and args.get("swiglu") is False and not gated:
        yield "an MLP that args say is no gated linear unit (GLU)"
    yield from _norms(family, args)
    yield from _positions(family, args)
    heads, groups = args.get("num_attention_heads"), args.get("num_key_value_heads")
    if groups not in (None, heads) and not has(made_of.GROUPED_HEADS):
        yield f"grouped-query attention ({heads} heads, {groups} groups)"


def _norms(family: ModelFamily, args: Mapping[str, Any]) -> Iterator[str]:
    has, norm, less_one = family.mechanisms.__contains__, args.get("normalization"), args.get("apply_layernorm_1p")
    known = _NORMS.get(norm) if isinstance(norm, str) else None
    if norm is not None and (known is None or not has(known)):
        yield "RMSNorm (Llama)" if known is made_of.RMSNORM else f"the normalization {shown(norm)}"
    # Any LayerNorm may be stored less 1: each target checks whether its arguments can express that.
    if less_one and has(made_of.RMSNORM) and not has(made_of.NORMS_LESS_ONE):
        yield f"norms stored less 1 (args.apply_layernorm_1p is {shown(less_one)})"
    if less_one is False and has(made_of.NORMS_LESS_ONE):
        yield "norms that args say are not stored less 1"


def _positions(family: ModelFamily, args: Mapping[str, Any]) -> Iterator[str]:
    has, rotary = family.mechanisms.__contains__, args.get("use_rotary_position_embeddings")
    if rotary and not has(made_of.ROTARY):
        yield "rotary positions"
    if rotary is False and has(made_of.ROTARY) and "add_position_embedding" in args:
        yield "positions that args say are not rotary"
    percent = args.get("rotary_percent")
    if rotary and percent not in (None, 1) and not has(made_of.PARTIAL_ROTARY):
        yield f"rotary positions in a part of each head (args.rotary_percent is {shown(percent)})"
    kind = getattr(args.get("position_embedding_type"), "args", None)
    number = kind[0] if isinstance(kind, tuple) and kind else None
    named = _POSITION_ENUM.get(number) if isinstance(number, int) else None
    if named is not None and not has(named):
        yield f"{named.name} positions"
