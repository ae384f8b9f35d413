"""The options that Megatron-LM's two layouts share."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Count
from streamconv.core.options import option
from streamconv.formats.options import TrainingOptions

__all__ = ["MegatronOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronOptions(TrainingOptions):
    """What is wanted of a Megatron-LM checkpoint."""

    vpp: int | None = option(
        Count(), "virtual stages on each pipeline stage", purpose="virtual stages of Megatron-LM", neutral=1
    )

    @property
    def has_virtual_stages(self) -> bool:
        """Whether the result can have virtual stages."""
        return True

    @property
    def virtual_stages(self) -> int | None:
        """The virtual stages that are asked for on each stage."""
        return self.vpp
