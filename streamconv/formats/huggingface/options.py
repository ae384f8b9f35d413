"""The options of Hugging Face model folders."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.options import option
from streamconv.formats.options import SourceOptions, WholeOptions
from streamconv.memory.options import SizeText

__all__ = ["SOURCE_OPTIONS", "TARGET_OPTIONS", "HuggingFaceOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceOptions(WholeOptions):
    """What is wanted of a Hugging Face model folder."""

    max_shard_size: str = option(
        SizeText(),
        "the largest file (default: 5GB)",
        default="5GB",
        purpose="the largest file of a Hugging Face model",
    )


SOURCE_OPTIONS = SourceOptions
TARGET_OPTIONS = HuggingFaceOptions
