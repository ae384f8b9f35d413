"""The types of the verbs' keywords, for type checkers; written by docs/options.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

from streamconv.core.dtypes import DType

__all__ = [
    "BenchKeywords",
    "ConvertKeywords",
    "DiffKeywords",
    "DigestKeywords",
    "ExtractKeywords",
    "InspectKeywords",
    "PlanKeywords",
    "StreamKeywords",
    "VerifyKeywords",
]


class PlanKeywords(TypedDict, total=False):
    """The keywords of ``plan``."""

    replicated: str | None
    to: str | None
    dtype: str | DType | None
    tp: int | None
    pp: int | None
    pp_layers: Sequence[int] | None
    iteration: int | None
    for_release: bool | None
    keep_args: bool | None
    fork: str | None
    max_shard_size: str | int | None
    tokenizer: str | PathLike[str] | None
    vocab_padding: str | None
    vpp: int | None
    container: str | None
    spec: str | None
    megatron_version: str | None
    dialect: str | None
    tensors: str | Sequence[str] | None
    skip: str | Sequence[str] | None
    base: str | PathLike[str] | None
    rename: str | Sequence[str] | Mapping[str, str] | None
    config: str | PathLike[str] | Mapping[str, Any] | None
    vocab_size: int | None
    num_heads: int | None
    tag: str | None
    qkv_layout: str | None
    glu_order: str | None
    weights: str | None
    ignore: str | None
    max_ram: str | int | None
    io: str | None
    jobs: int | None
    block_size: str | int | None
    engine: str | None


class ConvertKeywords(PlanKeywords, total=False):
    """The keywords of ``convert``."""

    overwrite: bool | None
    restart: bool | None


class StreamKeywords(PlanKeywords, total=False):
    """The keywords of ``stream``."""

    copy: bool | None
    framework: str | None


class InspectKeywords(TypedDict, total=False):
    """The keywords of ``inspect``."""

    tensors: str | None
    stats: bool | None
    check: bool | None
    target_tp: int | None
    target_pp: int | None
    config: str | PathLike[str] | Mapping[str, Any] | None
    vocab_size: int | None
    num_heads: int | None
    iteration: int | None
    tag: str | None
    pp_layers: Sequence[int] | None
    qkv_layout: str | None
    glu_order: str | None
    weights: str | None
    ignore: str | None
    max_ram: str | int | None
    io: str | None
    jobs: int | None


class VerifyKeywords(TypedDict, total=False):
    """The keywords of ``verify``."""

    reference: str | None
    replicated: str | None
    config: str | PathLike[str] | Mapping[str, Any] | None
    vocab_size: int | None
    num_heads: int | None
    iteration: int | None
    tag: str | None
    pp_layers: Sequence[int] | None
    qkv_layout: str | None
    glu_order: str | None
    weights: str | None
    ignore: str | None
    max_ram: str | int | None
    io: str | None
    jobs: int | None
    dst_config: str | PathLike[str] | Mapping[str, Any] | None
    dst_vocab_size: int | None
    dst_num_heads: int | None
    dst_iteration: int | None
    dst_tag: str | None
    dst_pp_layers: Sequence[int] | None
    dst_qkv_layout: str | None
    dst_glu_order: str | None
    dst_weights: str | None
    dst_ignore: str | None


class DiffKeywords(TypedDict, total=False):
    """The keywords of ``diff``."""

    everything: bool | None
    config: str | PathLike[str] | Mapping[str, Any] | None
    vocab_size: int | None
    num_heads: int | None
    iteration: int | None
    tag: str | None
    pp_layers: Sequence[int] | None
    qkv_layout: str | None
    glu_order: str | None
    weights: str | None
    ignore: str | None
    max_ram: str | int | None
    io: str | None
    jobs: int | None
    a_config: str | PathLike[str] | Mapping[str, Any] | None
    a_vocab_size: int | None
    a_num_heads: int | None
    a_iteration: int | None
    a_tag: str | None
    a_pp_layers: Sequence[int] | None
    a_qkv_layout: str | None
    a_glu_order: str | None
    a_weights: str | None
    a_ignore: str | None
    b_config: str | PathLike[str] | Mapping[str, Any] | None
    b_vocab_size: int | None
    b_num_heads: int | None
    b_iteration: int | None
    b_tag: str | None
    b_pp_layers: Sequence[int] | None
    b_qkv_layout: str | None
    b_glu_order: str | None
    b_weights: str | None
    b_ignore: str | None


class DigestKeywords(TypedDict, total=False):
    """The keywords of ``digest``."""

    sha256: bool | None
    replicated: str | None
    config: str | PathLike[str] | Mapping[str, Any] | None
    vocab_size: int | None
    num_heads: int | None
    iteration: int | None
    tag: str | None
    pp_layers: Sequence[int] | None
    qkv_layout: str | None
    glu_order: str | None
    weights: str | None
    ignore: str | None
    max_ram: str | int | None
    io: str | None
    jobs: int | None


class ExtractKeywords(TypedDict, total=False):
    """The keywords of ``extract``."""

    dtype: str | DType | None
    overwrite: bool | None
    config: str | PathLike[str] | Mapping[str, Any] | None
    vocab_size: int | None
    num_heads: int | None
    iteration: int | None
    tag: str | None
    pp_layers: Sequence[int] | None
    qkv_layout: str | None
    glu_order: str | None
    weights: str | None
    ignore: str | None
    max_ram: str | int | None
    io: str | None
    jobs: int | None


class BenchKeywords(PlanKeywords, total=False):
    """The keywords of ``bench``."""

    size: str | int | None
