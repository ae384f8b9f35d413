"""The options of plain DeepSpeed checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Choice, Text
from streamconv.core.options import option
from streamconv.formats.options import SourceOptions

__all__ = ["MASTER", "MODEL", "SOURCE_OPTIONS", "ZeroSourceOptions"]

MODEL, MASTER = "model", "master"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroSourceOptions(SourceOptions):
    """Which checkpoint of a plain DeepSpeed run is meant, and which of its two copies of the parameters."""

    tag: str | None = option(
        Text("NAME"),
        "which checkpoint of a root, by the name of its folder (default: what `latest` or the tracker names)",
        purpose="which checkpoint below a root is meant",
    )
    weights: str | None = option(
        Choice((MODEL, MASTER)),
        "of a DeepSpeed run the model as it computes, or the optimizer's fp32 masters (default: model, but master "
        "where the model's files hold placeholders, as with ZeRO stage 3)",
        purpose="which copy of the parameters of a DeepSpeed run is taken",
        neutral=MODEL,
        main=True,
    )


SOURCE_OPTIONS = ZeroSourceOptions
