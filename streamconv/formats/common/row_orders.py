"""Settle the orders of fused rows, which differ between forks and years of Megatron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, TypeVar

from streamconv.core.errors import AmbiguousError, DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.formats.options import RowOrderOptions
from streamconv.formats.source import Fact, StoredModel, positive_int
from streamconv.models.orders import GluOrder, QkvLayout
from streamconv.models.parameter import ParameterId, Section

__all__ = ["first_weight", "join_separate_heads", "settle_glu", "weigh"]

_QUERY, _KEY_VALUE, _FUSED = (f"self_attention.{name}." for name in ("query", "key_value", "query_key_value"))

Order = TypeVar("Order", bound=Enum)


def weigh(
    flag: str, said: Order | None, evidence: tuple[Order, str] | None
) -> tuple[tuple[Order, str] | None, list[str]]:
    """The order with its evidence, and warnings: ``said``, the user's choice, outweighs evidence, with a warning."""
    if said is None:
        return evidence, []
    against = evidence is not None and evidence[0] is not said
    return (said, flag), [f"{flag} {said.value} against the evidence ({evidence[1]})"] if evidence and against else []


def first_weight(model: StoredModel, key: str) -> LazyTensor | None:
    """A weight matrix of the first layer on rank 0; None if there is none."""
    shards = model.tensors.get(ParameterId(Section.LAYER, 0, key))
    return shards[0] if shards and len(shards[0].shape) == 2 else None


def join_separate_heads(model: StoredModel, options: RowOrderOptions) -> StoredModel | None:
    """The model with ``query`` and ``key_value`` of deepspeedai's fork joined into one query_key_value in blocks.

    None if the model has no such pairs.

    Grouped heads were stored apart from d6c9d841 (2023-07) to 8415d03e (2023-11): the rows of ``query`` are
    ``[heads, head_dim]``, those of ``key_value`` ``[groups, 2, head_dim]`` on each rank, split only after the view by
    group [``megatron/model/transformer.py:ParallelAttention.forward`` of d6c9d841].

    Raises:
        AmbiguousError: the number of heads is needed and unknown.
        DamagedError: rows do not divide into heads, or only some layers are stored in this way.
    """
    places = [place for place in model.tensors if place.key.startswith(_KEY_VALUE)]
    pairs = [(place, _beside(place, _QUERY)) for place in places]
    if not pairs or not all(p in model.tensors and model.tensors[p][0].shape for pair in pairs for p in pair):
        return None
    if any(place.key.startswith(_FUSED) for place in model.tensors):
        raise DamagedError("query_key_value is fused in some layers and stored apart in others", where=model.path)
    head_dim = _head_dim(model, options, model.tensors[pairs[0][1]])
    tensors = dict(model.tensors)
    for place, query in pairs:
        shards = zip(tensors.pop(query), tensors.pop(place), strict=True)
        tensors[_beside(place, _FUSED)] = tuple(_in_blocks(model, q, kv, head_dim) for q, kv in shards)
    warnings = []
    if options.qkv_layout not in (None, QkvLayout.BLOCKS):
        warnings.append(f"--qkv-layout {options.qkv_layout.value} is not used: query and key_value are apart")
    evidence = "the keys query and key_value: written from d6c9d841 (2023-07) to 8415d03e (2023-11)"
    fact = Fact("query_key_value rows blocks, joined from query and key_value", evidence)
    return replace(model, tensors=tensors, qkv=QkvLayout.BLOCKS).noting(facts=[fact], warnings=warnings)


def _beside(place: ParameterId, module: str) -> ParameterId:
    """The parameter of ``module`` beside one of ``key_value``: weight beside weight, bias beside bias."""
    return place.beside(module + place.key.removeprefix(_KEY_VALUE))


def _head_dim(model: StoredModel, options: RowOrderOptions, query: tuple[LazyTensor, ...]) -> int:
    if (channels := positive_int(model.args, "kv_channels", model.path)) is not None:
        return channels
    rows = query[0].shape[0] * len(query)
    heads = positive_int(model.args, "num_attention_heads", model.path) or options.num_heads
    if heads is None:
        raise AmbiguousError(
            "the number of attention heads is unknown, and the rows of key_value must be split by head",
            where=model.path,
            remedy="say --num-heads N",
        )
    return max(1, rows // heads)


def _in_blocks(model: StoredModel, query: LazyTensor, key_value: LazyTensor, head_dim: int) -> LazyTensor:
    """One rank's queries, then its keys, then its values."""
    groups, rest = divmod(key_value.shape[0], 2 * head_dim)
    if (query.shape[1:], query.dtype) != (key_value.shape[1:], key_value.dtype):
        shapes = f"query is {query.shape} {query.dtype}, key_value {key_value.shape} {key_value.dtype}"
        raise DamagedError(f"{shapes}: they do not belong together", where=model.path)
    if rest or query.shape[0] % head_dim:
        raise DamagedError(
            f"query has {query.shape[0]} rows and key_value {key_value.shape[0]}: no whole heads of {head_dim} rows",
            where=model.path,
            remedy="check --num-heads, or the arguments num_attention_heads and kv_channels",
        )
    by_group = key_value.unflatten(0, groups, 2 * head_dim)
    halves = (by_group.slice(1, start, start + head_dim).flatten(0) for start in (0, head_dim))
    return concat([query, *halves], 0).coalesced()


def settle_glu(model: StoredModel, options: RowOrderOptions, gate_up: str | None) -> StoredModel:
    """The model with the order of the halves of a gated ``dense_h_to_4h``; unchanged if it is not gated.

    Args:
        model: what was opened.
        options: the user's choice, which outweighs the evidence.
        gate_up: evidence for ``gate-up``, used where the arguments do not determine the order; None without any.

    Raises:
        AmbiguousError: nothing determines the order.
        UnsupportedError: the arguments name an activation that is not SwiGLU, or none.
    """
    up, down = first_weight(model, "mlp.dense_h_to_4h.weight"), first_weight(model, "mlp.dense_4h_to_h.weight")
    if up is None or down is None or up.shape[0] != 2 * down.shape[1]:
        return model
    settled, warnings = weigh("--glu-order", options.glu_order, _glu_evidence(model, gate_up))
    args = model.args or {}
    if settled is None and ("swiglu" in args or "glu_activation" in args):
        raise UnsupportedError(
            "a gated linear unit (GLU: dense_h_to_4h has twice the rows that dense_4h_to_h has columns), and args say "
            "that there is none",
            where=model.path,
            remedy="if args are wrong, say --glu-order gate-up or up-gate",
        )
    if settled is None:
        raise AmbiguousError(
            "which half of the gated dense_h_to_4h comes first cannot be known: args do not tell, and forks differ",
            where=model.path,
            remedy="say --glu-order up-gate (bigscience's fork) or gate-up (deepspeedai's)",
        )
    order, words = settled
    fact = Fact(f"dense_h_to_4h rows {order.value}", words)
    return replace(model, glu=order).noting(facts=[fact], warnings=warnings)


def _glu_evidence(model: StoredModel, gate_up: str | None) -> tuple[GluOrder, str] | None:
    """The order that the arguments imply, or else ``gate-up`` if there is other evidence for it.

    bigscience's fork has ``glu_activation`` [``megatron/model/glu_activations.py``: ``x1 * f(x2)``]. deepspeedai's has
    ``swiglu`` [``megatron/model/transformer.py:ParallelMLP``: ``silu(x[0]) * x[1]``] since the merge 9e72d571
    (2023-07-04), a week before its file numbers changed (53db2b14).
    """
    args: Mapping[str, Any] = model.args or {}
    activation = args.get("glu_activation")
    if activation not in (None, "swiglu"):
        raise UnsupportedError(
            f"a gated linear unit (GLU: {str(activation)[:40]}): families so far activate with silu (swiglu)",
            where=model.path,
        )
    if args.get("swiglu"):
        return GluOrder.GATE_UP, "args.swiglu: the argument of Megatron-LM and of deepspeedai's fork"
    if activation:
        return GluOrder.UP_GATE, "args.glu_activation: the argument of bigscience's fork"
    if gate_up is None or "swiglu" in args or "glu_activation" in args:
        return None
    return GluOrder.GATE_UP, gate_up
