"""The options of Megatron-LM's legacy checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Choice
from streamconv.core.options import option
from streamconv.formats.megatron.options import MegatronOptions
from streamconv.formats.options import RowOrderOptions

__all__ = ["SOURCE_OPTIONS", "TARGET_OPTIONS", "LegacyOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyOptions(MegatronOptions):
    """What is wanted of a legacy Megatron-LM checkpoint."""

    dialect: str = option(
        Choice(("2021", "2023-09")),
        "names of the norms: 2021 is input_layernorm (default, loads in every release), 2023-09 is input_norm",
        default="2021",
        purpose="the names in a legacy Megatron-LM checkpoint",
    )


SOURCE_OPTIONS = RowOrderOptions
TARGET_OPTIONS = LegacyOptions
