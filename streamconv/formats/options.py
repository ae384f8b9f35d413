"""The options that several formats share. A format's own are in its module ``options``.

That module has a ``SOURCE_OPTIONS`` and a ``TARGET_OPTIONS``, the dataclasses of what its source and its target take.
It imports nothing heavy: the command line reads the options of all formats before it knows which one is meant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.core.errors import UsageError
from streamconv.core.kinds import Choice, Count, Counts, Flag, InvalidValue, PathTo, Text, kind_of, plain
from streamconv.core.options import option
from streamconv.core.shown import as_shown
from streamconv.memory.options import SizeText
from streamconv.models.orders import GluOrder, QkvLayout

__all__ = [
    "RowOrderOptions",
    "ShardedOptions",
    "SourceOptions",
    "TargetOptions",
    "TrainingOptions",
    "TrainingSourceOptions",
    "WholeOptions",
]


_MOST_BITS = 64


class _Entries(PathTo):
    """Entries of a configuration: a mapping of their names to values, or the path of a JSON file with them."""

    python = "str | PathLike[str] | Mapping[str, Any]"

    def __init__(self) -> None:
        super().__init__("FILE", folder=False)

    def check(self, value: Any) -> Mapping[str, Any]:
        """As :meth:`ValueKind.check`."""
        if isinstance(value, Mapping):
            if not all(isinstance(name, str) for name in value):
                raise InvalidValue("entries that are not called by names", "give a mapping of names to values")
            try:
                return {name: _entry(name, each) for name, each in value.items()}
            except RecursionError:
                raise InvalidValue("entries that hold themselves, or too deep for JSON") from None
        if not isinstance(value, str | os.PathLike):
            what = f"{as_shown(value)}, not entries by their names"
            raise InvalidValue(what, "give a mapping of names to values, or the path of a JSON file")
        from streamconv.containers.json_file import read_config  # here: the command line's start does without it

        return read_config(super().check(value))


def _entry(name: str, value: Any) -> Any:
    """The value of an entry in Python's own types, as a JSON file would have it.

    Raises:
        InvalidValue: JSON has no word for it.
    """
    said = plain(value)
    if isinstance(said, Mapping):
        return {key: _entry(name, each) for key, each in said.items()}
    if isinstance(said, list | tuple):
        items = [_entry(name, each) for each in said]
        return items if isinstance(said, list) else tuple(items)
    if not (said is None or isinstance(said, bool | int | float | str)):
        raise InvalidValue(f"{name} is {kind_of(said)}, for which JSON has no word", "leave the entry out")
    if isinstance(said, int) and said.bit_length() > _MOST_BITS:
        raise InvalidValue(f"{name} is a number of {said.bit_length()} bits", "leave the entry out")
    return said


def _pp_layers() -> Any:
    return option(
        Counts(),
        "layers on each pipeline stage of the result, and of the source where it does not record them",
        purpose="the stages of a training checkpoint",
    )


def _iteration() -> Any:
    return option(
        Count(least=0, most=10**9 - 1),
        "training iteration, if the source does not record it, or another than it records",
        purpose="the iteration that a training checkpoint is of",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What a source does not say itself, or says wrongly.

    ``config`` has entries of a ``config.json``, or training arguments for a target that has them.
    """

    config: Mapping[str, Any] | None = option(
        _Entries(),
        "JSON file with what the source does not say: entries of config.json, or training arguments; they override "
        "those of a Hugging Face source",
        purpose="what a checkpoint does not say itself",
        main=True,
    )
    vocab_size: int | None = option(
        Count(), "true vocabulary size, without padding", purpose="the rows of the vocabulary that are true"
    )
    num_heads: int | None = option(Count(), "attention heads", purpose="the number of attention heads")
    iteration: int | None = _iteration()

    @property
    def entries(self) -> Mapping[str, Any]:
        """The entries of ``config``, if there are any."""
        return self.config or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSourceOptions(SourceOptions):
    """The same, of a checkpoint that a training framework wrote."""

    tag: str | None = option(
        Text("NAME"),
        "which checkpoint of a root, by the name of its folder (default: what `latest` or the tracker names)",
        purpose="which checkpoint below a root is meant",
    )
    pp_layers: tuple[int, ...] | None = _pp_layers()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrderOptions(TrainingSourceOptions):
    """The same, of a framework that has fused rows in more than one order."""

    qkv_layout: QkvLayout | None = option(
        Choice({layout.value: layout for layout in QkvLayout}),
        "order of rows in query_key_value: interleaved is [heads, 3, head_dim], blocks is all queries, then keys, then "
        "values, alternating is [heads, head_dim, 3]",
        purpose="the order of rows in Megatron's query_key_value",
    )
    glu_order: GluOrder | None = option(
        Choice({order.value: order for order in GluOrder}),
        "which half of a gated dense_h_to_4h comes first",
        purpose="the order of halves in Megatron's dense_h_to_4h",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """What is wanted of a target, whatever it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions(TargetOptions):
    """What is wanted of a training checkpoint, which has tensor- and pipeline-parallel ranks."""

    tp: int | None = option(
        Count(),
        "tensor-parallel size (default: the source's)",
        purpose="the ranks of a training checkpoint",
        neutral=1,
        main=True,
    )
    pp: int | None = option(
        Count(),
        "pipeline-parallel size (default: the source's, its stages included)",
        purpose="the stages of a training checkpoint",
        neutral=1,
        main=True,
    )
    pp_layers: tuple[int, ...] | None = _pp_layers()
    iteration: int | None = _iteration()
    for_release: bool = option(
        Flag(),
        "reset the counters of consumed samples in the training arguments",
        default=False,
        purpose="counters among the training arguments start anew",
    )
    keep_args: bool = option(
        Flag(),
        "leave the training arguments out of the result",
        default=True,
        flag="--no-args",
        purpose="the training arguments stay behind",
    )

    def __post_init__(self) -> None:
        if self.pp_layers is not None and self.pp not in (None, len(self.pp_layers)):
            what = f"--pp {self.pp} and {len(self.pp_layers)} stages in --pp-layers"
            raise UsageError(what, remedy="say one of them")

    @property
    def has_virtual_stages(self) -> bool:
        """Whether the result can have virtual stages."""
        return False

    @property
    def virtual_stages(self) -> int | None:
        """The virtual stages that are asked for on each stage."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedOptions(TargetOptions):
    """What is wanted of a model in files for transformers and its kind."""

    max_shard_size: str = option(
        SizeText(),
        "the largest file (default: 5GB)",
        default="5GB",
        purpose="the largest file of a model without ranks",
    )
    tokenizer: Any = option(
        PathTo("DIR", folder=True),
        "copy the tokenizer's files from there, byte for byte (default: from the source, if it has them)",
        purpose="files that go along with a model without ranks",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeOptions(ShardedOptions):
    """What is wanted of a translated model without ranks."""

    vocab_padding: str | None = option(
        Choice(("strip", "keep")),
        "padding of the vocabulary (default: strip, but BLOOM's and GPT-NeoX's published models keep it)",
        purpose="whether a target that pads nothing keeps the padding",
    )
