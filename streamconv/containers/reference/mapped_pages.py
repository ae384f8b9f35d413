"""Give back the pages of a file that another library has mapped: resident memory stays bounded while it is read."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MappedPages"]


class MappedPages:
    """The maps of one file in this process, as they are now."""

    def __init__(self, path: Path) -> None:
        self._ranges = list(_ranges(path))
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def give_back(self) -> None:
        """Forget what was read through the maps; whoever looks again reads it from the file again.

        Only for maps that nobody writes to: what was written to a private one would be lost.
        """
        for start, nbytes in self._ranges:
            self._madvise(start, nbytes, mmap.MADV_DONTNEED)


def _ranges(path: Path) -> Iterator[tuple[int, int]]:
    """(address, bytes) of each map of a file."""
    status = path.stat()
    place, real = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", os.path.realpath(path)
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        addresses, _, _, device, inode, *name = line.split(maxsplit=5)
        # A stacked file system has another device here than stat says; its maps are known by the path.
        if int(inode) == status.st_ino and (device == place or name == [real]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield start, end - start
