"""The options of Megatron-DeepSpeed's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Choice
from streamconv.core.options import option
from streamconv.formats.options import RowOrderOptions, TrainingOptions

__all__ = ["BIGSCIENCE", "DEEPSPEEDAI", "DEEPSPEEDAI_2024_11", "SOURCE_OPTIONS", "TARGET_OPTIONS", "DeepSpeedOptions"]

BIGSCIENCE = "bigscience"
"""bigscience-workshop/Megatron-DeepSpeed. As a numbering of layer files also deepspeedai's fork before 53db2b14
(2023-07).
"""

DEEPSPEEDAI_2024_11 = "deepspeedai-2024-11"
"""deepspeedai/Megatron-DeepSpeed before 676a482c (2024-12): rows of query_key_value are interleaved."""

DEEPSPEEDAI = "deepspeedai"
"""deepspeedai/Megatron-DeepSpeed since 676a482c. As a numbering of layer files since 53db2b14 (2023-07)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedOptions(TrainingOptions):
    """What is wanted of a Megatron-DeepSpeed folder; ``fork`` None is the source's, or one that runs the model."""

    fork: str | None = option(
        Choice((DEEPSPEEDAI, DEEPSPEEDAI_2024_11, BIGSCIENCE)),
        "the code that is to load the result, which sets file numbers and row orders (default: the source's, or one "
        "that runs the model)",
        purpose="the code that loads a Megatron-DeepSpeed or GPT-NeoX folder",
    )


SOURCE_OPTIONS = RowOrderOptions
TARGET_OPTIONS = DeepSpeedOptions
