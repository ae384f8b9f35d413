"""The options of comparisons, of digests, and of a second witness."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Choice, Flag
from streamconv.core.options import option

__all__ = ["DiffOptions", "DigestOptions", "ReferenceOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffOptions:
    """What of two checkpoints is compared."""

    everything: bool = option(
        Flag(),
        "compare all tensors file by file, optimizer state included, where else two models' parameters are compared",
        default=False,
        main=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestOptions:
    """How digests are taken."""

    sha256: bool = option(
        Flag(), "SHA-256, for publication (default: xxh3-128, which is faster and no seal)", default=False, main=True
    )

    @property
    def algorithm(self) -> str:
        """The algorithm's name in a file of digests."""
        return "sha256" if self.sha256 else "xxh3-128"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceOptions:
    """Whether the formats' own readers are asked too."""

    reference: str | None = option(
        Choice(("sample", "all"), bare="sample"),
        "open every file with its format's own reader too, under mapping, and compare a sample of tensors (default), "
        "or all",
        main=True,
    )
