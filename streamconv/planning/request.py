"""What a conversion is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from streamconv.core.dtypes import DType
from streamconv.formats.source import SourceOptions
from streamconv.formats.target import CoreChoices

__all__ = ["ConvertOptions", "WantedLayout"]


@dataclass(frozen=True, slots=True)
class WantedLayout:
    """What is asked of the target's layout. None means: as the source has it. ``pp_layers`` are those of each stage."""

    tp: int | None = None
    pp: int | None = None
    pp_layers: tuple[int, ...] | None = None
    vpp: int | None = None


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What a conversion is asked to do. None means: as the source has it, or the target's default.

    ``to`` is a target format or ``megatron`` (the newest Megatron layout that can hold the model). ``replicated`` says
    which copy of a replicated parameter counts. ``tokenizer`` is the folder of tokenizer files.
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
