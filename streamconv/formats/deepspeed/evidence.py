"""Weigh the evidence in a Megatron-DeepSpeed folder: parallel sizes, orders of fused rows, the fork that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from streamconv.core.errors import AmbiguousError, DamagedError
from streamconv.formats.common.row_orders import first_weight, join_separate_heads, settle_glu, weigh
from streamconv.formats.deepspeed.options import BIGSCIENCE, DEEPSPEEDAI, DEEPSPEEDAI_2024_11
from streamconv.formats.options import RowOrderOptions
from streamconv.formats.source import Fact, StoredModel
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import ParameterId, Section

__all__ = [
    "ParallelSize",
    "agree",
    "settle_qkv",
    "settle_rows",
]

_BIGSCIENCE_ARGS = ("embed_layernorm", "glu_activation", "kill_switch_path", "sync_tp_duplicated_parameters")
_FPDT = "ds_sequence_parallel_fpdt"


@dataclass(frozen=True, slots=True)
class ParallelSize:
    """A size (None if unknown), the facts that it follows from, and warnings of evidence against it."""

    value: int | None
    facts: list[Fact]
    warnings: list[str]


def agree(folder: Path, what: str, said: Mapping[str, int], counted: int | None, files: str) -> ParallelSize:
    """One parallel size from ``said``, its records with the most trusted first, and ``counted``, the number of files.

    Raises:
        DamagedError: the most trusted record differs from the number of files.
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


def settle_rows(model: StoredModel, options: RowOrderOptions, numbered_by: str | None) -> StoredModel:
    """The model with the orders of all its fused rows, the fork that wrote it, and the evidence of both.

    Args:
        model: what was opened.
        options: the user's choices, which outweigh the evidence.
        numbered_by: the fork that numbers layer files so, :data:`BIGSCIENCE` or :data:`DEEPSPEEDAI`, None if unknown.

    Raises:
        AmbiguousError: nothing determines an order.
        UnsupportedError: a gated linear unit is none that a family has.
        DamagedError: query and key_value are apart and do not fit together.
    """
    joined = join_separate_heads(model, options)
    settled = joined or settle_qkv(model, options, numbered_by == BIGSCIENCE)
    gate_up = "arranged as by deepspeedai's fork since 2023-07" if numbered_by == DEEPSPEEDAI else None
    settled = settle_glu(settled, options, gate_up)
    is_before_blocks = joined is not None or settled.qkv is QkvLayout.INTERLEAVED
    return replace(settled, fork=_fork(settled, numbered_by, is_before_blocks))


def _fork(model: StoredModel, numbered_by: str | None, is_before_blocks: bool) -> str | None:
    if numbered_by == DEEPSPEEDAI:
        return DEEPSPEEDAI_2024_11 if is_before_blocks else DEEPSPEEDAI
    if numbered_by == BIGSCIENCE and is_before_blocks:
        has_norm = ParameterId(Section.EMBEDDING, -1, "word_embeddings.norm.weight") in model.tensors
        if has_norm or any(name in (model.args or {}) for name in _BIGSCIENCE_ARGS):
            return BIGSCIENCE
        return None if model.args is None else DEEPSPEEDAI_2024_11
    return None


def settle_qkv(model: StoredModel, options: RowOrderOptions, bigscience_numbering: bool) -> StoredModel:
    """The model with the row order of query_key_value and its evidence; no key and no shape shows the order.

    Args:
        model: what was opened.
        options: the user's choice, which outweighs the evidence.
        bigscience_numbering: whether the files are numbered in a way that only forks without blocks use.

    Raises:
        AmbiguousError: nothing determines the order.
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
    settled, warnings = weigh("--qkv-layout", options.qkv_layout, evidence)
    if settled is None:
        raise AmbiguousError(
            "the row order of query_key_value cannot be known: there are no args, and both orders have its shape",
            where=model.path,
            remedy="say --qkv-layout interleaved ([heads,3,head_dim]) or blocks ([3,heads,head_dim], since 2024-12)",
        )
    order, words = settled
    if order is QkvLayout.BLOCKS and options.qkv_layout is None and _is_grouped(model):
        # megatron/model/transformer.py:ParallelAttention.forward at 4efb479: each_hidden_size is a third of all rows;
        # tools/hf2megads_weight_converter.py:_qkv_refactor there: [ng, np/ng + 2, hn].
        warnings.append(
            "heads share keys and values, and rows are taken for blocks: Megatron-DeepSpeed since 676a482c cannot run "
            "such a model, and its converter from Hugging Face leaves rows interleaved: check the result's answers, or "
            "say --qkv-layout"
        )
    fact = Fact(f"query_key_value rows {order.value}", words)
    return replace(model, qkv=order).noting(facts=[fact], warnings=warnings)


def _is_grouped(model: StoredModel) -> bool:
    """Whether query_key_value has fewer rows than three for each column of the output projection."""
    fused = first_weight(model, "self_attention.query_key_value.weight")
    dense = first_weight(model, "self_attention.dense.weight")
    return fused is not None and dense is not None and fused.shape[0] < 3 * dense.shape[1]
