"""Direct input and output: bytes go between the disk and our buffers without a copy in the page cache.

``O_DIRECT`` requires that the file offset, the memory address and the length are multiples of the disk's block size
(open(2)). So a buffer is planned in pages: bytes at file offset ``o`` are placed at a position that is equal to ``o``
modulo :data:`PAGE`, and no other bytes share their pages.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

__all__ = [
    "DIRECT_NBYTES",
    "PAGE",
    "Buffer",
    "congruent",
    "is_direct",
    "is_refusal",
    "new_buffer",
    "open_file",
    "page_end",
    "page_start",
]

PAGE = 4096
"""A multiple of the block size of every disk that is in use."""

DIRECT_NBYTES = 128 << 10
"""Shorter reads and writes go through the page cache, which combines neighbouring ones."""

Buffer = bytes | bytearray | mmap.mmap
"""The memory that bytes are read into and written from."""

_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)


def page_start(offset: int) -> int:
    """``offset`` rounded down to a multiple of :data:`PAGE`."""
    return offset - offset % PAGE


def page_end(offset: int) -> int:
    """``offset`` rounded up to a multiple of :data:`PAGE`."""
    return offset + -offset % PAGE


def congruent(position: int, offset: int) -> int:
    """The position in the first page that begins at ``position`` or after it, equal to ``offset`` modulo a page."""
    return page_end(position) + offset % PAGE


def new_buffer(nbytes: int) -> mmap.mmap:
    """Zeroed memory that begins on a page."""
    return mmap.mmap(-1, max(PAGE, page_end(nbytes)))


def is_direct(offset: int, buffer: Buffer, position: int, nbytes: int) -> bool:
    """Whether to transfer bytes at file ``offset`` directly from or to ``position`` of a buffer: there are at least
    :data:`DIRECT_NBYTES`, the buffer begins on a page, and both places are equal modulo :data:`PAGE`.
    """
    return nbytes >= DIRECT_NBYTES and isinstance(buffer, mmap.mmap) and position % PAGE == offset % PAGE


def is_refusal(error: OSError) -> bool:
    """Whether an error means that the file system does not support direct transfers (of this alignment)."""
    return error.errno in _REFUSED


def open_file(path: Path, flags: int, *, direct: bool) -> tuple[int, bool]:
    """(descriptor, whether it transfers directly); False where the system does not support direct transfers."""
    flags |= os.O_CLOEXEC
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT), True
        except OSError as error:
            if not is_refusal(error):
                raise
    return os.open(path, flags), False
