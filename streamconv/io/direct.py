"""Direct input and output: bytes go between the disk and our buffers without a copy in the page cache.

``O_DIRECT`` wants the place in the file, the place in memory and the length to be multiples of the disk's block
(open(2)). So a buffer is planned in pages: bytes that lie at offset ``o`` of a file are kept at a position that is
``o`` modulo :data:`PAGE`, and the whole pages around them belong to them alone.
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
"""Shorter reads and writes go through the page cache, which gathers neighbours."""

Buffer = bytes | bytearray | mmap.mmap
"""What bytes are read into and written from."""

_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)


def page_start(offset: int) -> int:
    """The last multiple of a page that is not above ``offset``."""
    return offset - offset % PAGE


def page_end(offset: int) -> int:
    """The first multiple of a page that is not below ``offset``."""
    return offset + -offset % PAGE


def congruent(position: int, offset: int) -> int:
    """The first place in a buffer from ``position`` on that begins a page of its own for bytes at file ``offset``."""
    return page_end(position) + offset % PAGE


def new_buffer(nbytes: int) -> mmap.mmap:
    """Zeroed memory that begins on a page."""
    return mmap.mmap(-1, max(PAGE, page_end(nbytes)))


def is_direct(offset: int, buffer: Buffer, position: int, nbytes: int) -> bool:
    """Whether bytes at ``offset`` of a file can go directly from or to ``position`` of a buffer, and are worth it: they
    are long, the buffer begins on a page, and the two places in their pages are the same.
    """
    return nbytes >= DIRECT_NBYTES and isinstance(buffer, mmap.mmap) and position % PAGE == offset % PAGE


def is_refusal(error: OSError) -> bool:
    """Whether a file system says by this error that it does not do direct transfers (of this alignment)."""
    return error.errno in _REFUSED


def open_file(path: Path, flags: int, *, direct: bool) -> tuple[int, bool]:
    """(descriptor, whether it transfers directly); buffered where the system or the file system has no such thing."""
    flags |= os.O_CLOEXEC
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT), True
        except OSError as error:
            if not is_refusal(error):
                raise
    return os.open(path, flags), False
