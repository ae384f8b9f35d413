"""The options of GPT-NeoX's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Choice
from streamconv.core.options import option
from streamconv.formats.options import TrainingOptions, TrainingSourceOptions

__all__ = ["BEFORE", "NOW", "SOURCE_OPTIONS", "TARGET_OPTIONS", "NeoxOptions"]

NOW, BEFORE = "gpt-neox", "gpt-neox-2024-08"
"""Today's names of the MLP, and those before 0d4bdb96 (2024-09), as Pythia was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxOptions(TrainingOptions):
    """What is wanted of a GPT-NeoX folder."""

    fork: str = option(
        Choice((NOW, BEFORE)),
        f"the code that is to load the result, which sets the names of the MLP (default: {NOW})",
        default=NOW,
        purpose="the code that loads a Megatron-DeepSpeed or GPT-NeoX folder",
    )


SOURCE_OPTIONS = TrainingSourceOptions
TARGET_OPTIONS = NeoxOptions
