"""Which file a checkpoint was opened from, so that another one in its place is not taken for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FileIdentity"]


@dataclass(slots=True, eq=False)
class FileIdentity:
    """A file as it was when it was opened: its size in bytes, its time of change in nanoseconds, and its metadata.

    ``ranges`` are the (offset, bytes) of it that were read until its tensors were known, and ``digest`` is the SHA-256
    of these bytes. The places of all tensors follow from them: a file of the same digest has them in the same places.
    """

    path: Path
    nbytes: int
    mtime_ns: int
    ranges: list[tuple[int, int]] = field(default_factory=list)
    digest: bytes = b""

    def matches(self, status: os.stat_result) -> bool:
        """Whether a file has this size and this time of change."""
        return (status.st_size, status.st_mtime_ns) == (self.nbytes, self.mtime_ns)
