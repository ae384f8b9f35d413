"""The options of an inspection."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Count, Flag, Text
from streamconv.core.options import option

__all__ = ["InspectOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """What to inspect beyond the metadata."""

    tensors: str | None = option(Text("GLOB"), "list the tensors whose names match, such as '*.mlp.*'", main=True)
    stats: bool = option(
        Flag(), "stream all values: min, max, mean, std, zeros, NaN, Inf, drifted replicas", default=False, main=True
    )
    check: bool = option(Flag(), "check every record's CRC-32", default=False, main=True)
    target_tp: int | None = option(Count(), "map the source's files to a target of this TP")
    target_pp: int | None = option(Count(), "map the source's files to a target of this PP")
