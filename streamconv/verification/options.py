"""The options of digests."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Flag
from streamconv.core.options import option

__all__ = ["DigestOptions"]


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
