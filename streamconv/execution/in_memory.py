"""Memory as an output: the bytes of target tensors go into a pool instead of a file."""

from __future__ import annotations

import numpy as np

from streamconv.io.direct import Buffer

__all__ = ["MemoryOutput"]


class MemoryOutput:
    """An output in memory."""

    wants_pages = False
    has_failed = False

    def __init__(self, pool: Buffer) -> None:
        self.bytes = np.frombuffer(pool, np.uint8)

    def write(self, offset: int, buffer: Buffer, position: int, nbytes: int) -> None:
        """As an output file's: ``nbytes`` of a buffer from ``position``."""
        np.copyto(self.bytes[offset : offset + nbytes], np.frombuffer(buffer, np.uint8, nbytes, position))

    def commit(self) -> None:
        """Nothing is to be made durable."""
