"""The options of Hugging Face model folders."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Choice
from streamconv.core.options import option
from streamconv.formats.options import SourceOptions, WholeOptions

__all__ = ["SOURCE_OPTIONS", "TARGET_OPTIONS", "HuggingFaceOptions", "HuggingFaceSourceOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceSourceOptions(SourceOptions):
    """What a Hugging Face model folder does not say itself, and what in it is to be passed over."""

    ignore: str | None = option(
        Choice(("adapter",)),
        "go without what lies beside a model and changes it: an adapter, which from_pretrained lays over the model",
        purpose="what lies beside a Hugging Face model",
        destroys=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceOptions(WholeOptions):
    """What is wanted of a Hugging Face model folder."""


SOURCE_OPTIONS = HuggingFaceSourceOptions
TARGET_OPTIONS = HuggingFaceOptions
