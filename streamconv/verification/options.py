"""The options of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Flag
from streamconv.core.options import option

__all__ = ["DiffOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffOptions:
    """What of two checkpoints is compared."""

    everything: bool = option(
        Flag(),
        "compare all tensors file by file, optimizer state included, where else two models' parameters are compared",
        default=False,
        main=True,
    )
