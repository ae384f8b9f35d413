"""The options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from streamconv.core.dtypes import DType
from streamconv.formats.source import SourceOptions
from streamconv.formats.target import CoreChoices

__all__ = ["ConvertOptions", "WantedLayout"]


@dataclass(frozen=True, slots=True)
class WantedLayout:
    """The requested layout of the target. None means the source's. ``pp_layers`` are the layers on each stage."""

    tp: int | None = None
    pp: int | None = None
    pp_layers: tuple[int, ...] | None = None
    vpp: int | None = None


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The options of a conversion. None means the source's value, or the target's default.

    ``to`` is a target format or ``megatron`` (the newest Megatron layout that can hold the model). ``replicated`` says
    which copy of a replicated parameter is used. ``tokenizer`` is the folder of tokenizer files.
    """

    to: str = "megatron"
    layout: WantedLayout = field(default_factory=WantedLayout)
    dtype: DType | None = None
    dialect: str | None = None
    replicated: str = "first"
    vocab_size: int | None = None
    vocab_padding: str | None = None
    for_release: bool = False
    keep_args: bool = True
    max_shard_nbytes: int | None = None
    core: CoreChoices = field(default_factory=CoreChoices)
    tokenizer: Path | None = None
    source: SourceOptions = field(default_factory=SourceOptions)
