"""The options of Megatron-Core's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.errors import UsageError
from streamconv.core.kinds import Choice
from streamconv.core.options import option
from streamconv.formats.megatron.options import MegatronOptions
from streamconv.formats.megatron.releases import Release
from streamconv.formats.options import TrainingSourceOptions

__all__ = ["SOURCE_OPTIONS", "TARGET_OPTIONS", "CoreOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreOptions(MegatronOptions):
    """What is wanted of a Megatron-Core checkpoint.

    ``spec`` determines the names of norms; None is ``te``. ``megatron_version`` is the release that is to load the
    checkpoint, 16 for core_v0.16; None is any that can.
    """

    container: str = option(
        Choice(("torch_dist", "torch")),
        "torch_dist (default), whose reader reshards, or torch, a file for each rank",
        default="torch_dist",
        purpose="the container of a Megatron-Core checkpoint",
    )
    spec: str | None = option(
        Choice(("te", "local")),
        "layer spec of the model that loads it: te, Transformer Engine (default, as in Megatron-LM), or local",
        purpose="the layers that load a Megatron-Core checkpoint",
    )
    megatron_version: int | None = option(
        Release(),
        "the release that is to load it: refuse what that cannot run, write what it writes (default: any that can)",
        purpose="the release that loads a Megatron-Core checkpoint",
    )

    def __post_init__(self) -> None:
        MegatronOptions.__post_init__(self)
        if self.vpp not in (None, 1) and not self.has_virtual_stages:
            raise UsageError(
                "--vpp has no meaning with --container torch_dist: its reader cuts stages as it likes",
                remedy="leave it out, or say --container torch",
            )

    @property
    def has_virtual_stages(self) -> bool:
        """Whether the result can have virtual stages."""
        return self.container == "torch"


SOURCE_OPTIONS = TrainingSourceOptions
TARGET_OPTIONS = CoreOptions
