"""What a Megatron-DeepSpeed folder says of itself, weighed: parallel sizes, the orders of fused rows, who wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from streamconv.errors import AmbiguousError, DamagedError, UnsupportedError
from streamconv.families.base import Section
from streamconv.families.rows import GluOrder, QkvLayout
from streamconv.formats.base import Fact, Place, ShardedModel, SourceOptions, positive_int
from streamconv.lazy import LazyTensor, concat

__all__ = [
    "BIGSCIENCE",
    "DEEPSPEEDAI",
    "DEEPSPEEDAI_2024_11",
    "ParallelSize",
    "agree",
    "join_separate_heads",
    "settle_glu",
    "settle_qkv",
    "settle_rows",
]

BIGSCIENCE = "bigscience"
"""bigscience-workshop/Megatron-DeepSpeed. As who numbers layer files: or deepspeedai's fork before 53db2b14
(2023-07).
"""

DEEPSPEEDAI_2024_11 = "deepspeedai-2024-11"
"""deepspeedai/Megatron-DeepSpeed before 676a482c (2024-12): rows of query_key_value are interleaved."""

DEEPSPEEDAI = "deepspeedai"
"""deepspeedai/Megatron-DeepSpeed since 676a482c. As who numbers layer files: since 53db2b14 (2023-07)."""

_BIGSCIENCE_ARGS = ("embed_layernorm", "glu_activation", "kill_switch_path", "sync_tp_duplicated_parameters")
_FPDT = "ds_sequence_parallel_fpdt"
_QUERY, _KEY_VALUE, _FUSED = (f"self_attention.{name}." for name in ("query", "key_value", "query_key_value"))

Order = TypeVar("Order", bound=Enum)


@dataclass(frozen=True, slots=True)
class ParallelSize:
    """A size that was agreed on (None if nothing says it), from what, and what spoke against it."""

    value: int | None
    facts: list[Fact]
    warnings: list[str]


def agree(folder: Path, what: str, said: Mapping[str, int], counted: int | None, files: str) -> ParallelSize:
    """One parallel size out of what is recorded and how many files there are; the record counts before the
    arguments.
    """
    facts = [f"{source} says {value}" for source, value in said.items()]
    if counted is not None:
        facts.append(f"{files} count {counted}")
    values = list(said.values())
    trusted = values[0] if values else counted
    if trusted is None:
        return ParallelSize(None, [], [f"the source's {what} is unknown: there are no mp_rank files"])
    if counted is not None and trusted != counted:
        raise DamagedError(
            f"the source's {what} is contradictory: {', '.join(facts)}",
            where=folder,
            remedy="files are missing, or left over from another run: keep the checkpoint's own files, all of them",
        )
    warnings = [f"the source's {what}: {', '.join(facts)}; took {trusted}"] if len(set(values)) > 1 else []
    return ParallelSize(trusted, [Fact(f"{what} {trusted}", ", ".join(facts))], warnings)


def settle_rows(model: ShardedModel, options: SourceOptions, numbered_by: str | None) -> None:
    """Decide the orders of all fused rows, and who wrote the folder.

    Args:
        model: gets the orders, the fork, and facts with their evidence.
        options: what the user says outweighs the evidence.
        numbered_by: whose numbers the layer files have, :data:`BIGSCIENCE` or :data:`DEEPSPEEDAI`, None if unknown.

    Raises:
        AmbiguousError: nothing tells an order.
        UnsupportedError: a gated linear unit is none that a family has.
        DamagedError: query and key_value are apart and do not fit together.
    """
    apart = join_separate_heads(model, options)
    if not apart:
        settle_qkv(model, options, numbered_by == BIGSCIENCE)
    is_deepspeedai = numbered_by == DEEPSPEEDAI
    settle_glu(model, options, "arranged as by deepspeedai's fork since 2023-07" if is_deepspeedai else None)
    model.fork = _fork(model, numbered_by, apart or model.qkv is QkvLayout.INTERLEAVED)


def _fork(model: ShardedModel, numbered_by: str | None, is_before_blocks: bool) -> str | None:
    if numbered_by == DEEPSPEEDAI:
        return DEEPSPEEDAI_2024_11 if is_before_blocks else DEEPSPEEDAI
    if numbered_by == BIGSCIENCE and is_before_blocks:
        has_norm = (Section.EMBEDDING, -1, "word_embeddings.norm.weight") in model.tensors
        if has_norm or any(name in (model.args or {}) for name in _BIGSCIENCE_ARGS):
            return BIGSCIENCE
        return None if model.args is None else DEEPSPEEDAI_2024_11
    return None


def _weigh(
    model: ShardedModel, flag: str, said: Order | None, evidence: tuple[Order, str] | None
) -> tuple[Order, str] | None:
    """What the user says outweighs the evidence, but not without a word."""
    if said is None:
        return evidence
    if evidence and evidence[0] is not said:
        model.warnings.append(f"{flag} {said.value} against the evidence ({evidence[1]})")
    return said, flag


def settle_qkv(model: ShardedModel, options: SourceOptions, bigscience_numbering: bool) -> None:
    """Decide the row order, which no key and no shape shows.

    Args:
        model: gets the order, and the fact with its evidence.
        options: what the user says outweighs the evidence.
        bigscience_numbering: whether the files are numbered as only forks without blocks number them.

    Raises:
        AmbiguousError: nothing tells.
    """
    evidence: tuple[QkvLayout, str] | None = None
    if model.args is not None:
        blocks = _FPDT in model.args
        words = "has" if blocks else "does not have"
        since = "since" if blocks else "before"
        layout = QkvLayout.BLOCKS if blocks else QkvLayout.INTERLEAVED
        evidence = layout, f"args {words} {_FPDT}: written {since} commit 676a482c of Megatron-DeepSpeed"
    elif bigscience_numbering:
        evidence = (
            QkvLayout.INTERLEAVED,
            "the file numbers are those of bigscience's fork, or of deepspeedai's before 2023-07",
        )
    settled = _weigh(model, "--qkv-layout", options.qkv_layout, evidence)
    if settled is None:
        raise AmbiguousError(
            "the row order of query_key_value cannot be known: there are no args, and both orders have its shape",
            where=model.path,
            remedy="say --qkv-layout interleaved ([heads,3,head_dim]) or blocks ([3,heads,head_dim], since 2024-12)",
        )
    model.qkv, words = settled
    model.facts.append(Fact(f"query_key_value rows {model.qkv.value}", words))
    if model.qkv is QkvLayout.BLOCKS and options.qkv_layout is None and _is_grouped(model):
        # megatron/model/transformer.py:ParallelAttention.forward at 4efb479: each_hidden_size is a third of all rows;
        # tools/hf2megads_weight_converter.py:_qkv_refactor there: [ng, np/ng + 2, hn].
        model.warnings.append(
            "heads share keys and values, and rows are taken for blocks: Megatron-DeepSpeed since 676a482c cannot run "
            "such a model, and its converter from Hugging Face leaves rows interleaved: check the result's answers, or "
            "say --qkv-layout"
        )


def _first(model: ShardedModel, key: str) -> LazyTensor | None:
    """A weight of the first layer on rank 0."""
    shards = model.tensors.get((Section.LAYER, 0, key))
    return shards[0] if shards and len(shards[0].shape) == 2 else None


def _is_grouped(model: ShardedModel) -> bool:
    """Whether query_key_value has fewer rows than three for each column of the output projection."""
    fused, dense = _first(model, f"{_FUSED}weight"), _first(model, "self_attention.dense.weight")
    return fused is not None and dense is not None and fused.shape[0] < 3 * dense.shape[1]


def join_separate_heads(model: ShardedModel, options: SourceOptions) -> bool:
    """Join ``query`` and ``key_value`` of deepspeedai's fork into one query_key_value in blocks, if they are there.

    Grouped heads were stored apart from d6c9d841 (2023-07) to 8415d03e (2023-11): the rows of ``query`` are
    ``[heads, head_dim]``, those of ``key_value`` ``[groups, 2, head_dim]`` on each rank, split only after the view by
    group [``megatron/model/transformer.py:ParallelAttention.forward`` of d6c9d841].

    Raises:
        AmbiguousError: the number of heads is needed and unknown.
        DamagedError: rows do not divide into heads, or some layers are stored so and others not.
    """
    places = [place for place in model.tensors if place[2].startswith(_KEY_VALUE)]
    pairs = [(place, _beside(place, _QUERY)) for place in places]
    if not pairs or not all(p in model.tensors and model.tensors[p][0].shape for pair in pairs for p in pair):
        return False
    if any(place[2].startswith(_FUSED) for place in model.tensors):
        raise DamagedError("query_key_value is fused in some layers and stored apart in others", where=model.path)
    head_dim = _head_dim(model, options, model.tensors[pairs[0][1]])
    for place, query in pairs:
        key_values = model.tensors.pop(place)
        joined = [
            _in_blocks(model, q, kv, head_dim) for q, kv in zip(model.tensors.pop(query), key_values, strict=True)
        ]
        model.tensors[_beside(place, _FUSED)] = tuple(joined)
    model.qkv = QkvLayout.BLOCKS
    if options.qkv_layout not in (None, QkvLayout.BLOCKS):
        model.warnings.append(f"--qkv-layout {options.qkv_layout.value} is not used: query and key_value are apart")
    evidence = "the keys query and key_value: written from d6c9d841 (2023-07) to 8415d03e (2023-11)"
    model.facts.append(Fact("query_key_value rows blocks, joined from query and key_value", evidence))
    return True


def _beside(place: Place, module: str) -> Place:
    """The same leaf of another module than ``key_value``."""
    section, layer, key = place
    return section, layer, module + key.removeprefix(_KEY_VALUE)


def _head_dim(model: ShardedModel, options: SourceOptions, query: tuple[LazyTensor, ...]) -> int:
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


def _in_blocks(model: ShardedModel, query: LazyTensor, key_value: LazyTensor, head_dim: int) -> LazyTensor:
    """One rank's queries, then its keys, then its values."""
    groups, rest = divmod(key_value.shape[0], 2 * head_dim)
    if (query.shape[1:], query.dtype) != (key_value.shape[1:], key_value.dtype):
        found = f"query is {query.shape} {query.dtype}, key_value {key_value.shape} {key_value.dtype}"
        raise DamagedError(f"{found}: they do not belong together", where=model.path)
    if rest or query.shape[0] % head_dim:
        raise DamagedError(
            f"query has {query.shape[0]} rows and key_value {key_value.shape[0]}: no whole heads of {head_dim} rows",
            where=model.path,
            remedy="check --num-heads, or the arguments num_attention_heads and kv_channels",
        )
    by_group = key_value.unflatten(0, groups, 2 * head_dim)
    halves = (by_group.slice(1, start, start + head_dim).flatten(0) for start in (0, head_dim))
    return concat([query, *halves], 0).coalesced()


def settle_glu(model: ShardedModel, options: SourceOptions, gate_up: str | None) -> None:
    """Decide which half of a gated ``dense_h_to_4h`` comes first, if its rows say that it has two.

    Args:
        model: gets the order, and the fact with its evidence.
        options: what the user says outweighs the evidence.
        gate_up: what speaks for ``gate-up`` where the arguments do not tell, None if nothing does.

    Raises:
        AmbiguousError: nothing tells.
        UnsupportedError: the arguments name an activation that is not SwiGLU, or none.
    """
    up, down = _first(model, "mlp.dense_h_to_4h.weight"), _first(model, "mlp.dense_4h_to_h.weight")
    if up is None or down is None or up.shape[0] != 2 * down.shape[1]:
        return
    settled = _weigh(model, "--glu-order", options.glu_order, _glu_evidence(model, gate_up))
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
    model.glu, words = settled
    model.facts.append(Fact(f"dense_h_to_4h rows {model.glu.value}", words))


def _glu_evidence(model: ShardedModel, gate_up: str | None) -> tuple[GluOrder, str] | None:
    """The order that the arguments mean, else what else speaks for ``gate-up``.

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
