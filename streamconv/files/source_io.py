"""Read a source's bytes by position: with ``pread``, or from a map of the file. Pages that were read are given back.

A map turns an I/O error into SIGBUS and counts its pages as resident memory, so ``pread`` is the default; the choice is
the user's (``--io``).
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from streamconv.errors import DamagedError, StorageError, UsageError

__all__ = ["IO_MODES", "SourceFiles", "check_io_mode"]

IO_MODES = ("pread", "mmap")
_OPEN_FILES = 32
# One drop of the pages just read leaves some behind (readahead still holds them): they are dropped again later.
_DROP_LAG = 64 << 20


class _OpenFile(Protocol):
    def read_into(self, offset: int, buffer: memoryview) -> int: ...

    def close(self) -> None: ...


class _Positional:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            count = os.preadv(self.fd, [buffer[done:]], offset + done)
            if count == 0:
                break
            done += count
        start = max(0, offset - _DROP_LAG)
        os.posix_fadvise(self.fd, start, offset + done - start, os.POSIX_FADV_DONTNEED)
        return done

    def close(self) -> None:
        os.close(self.fd)


class _Mapped:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(self.fd).st_size
        self.map = mmap.mmap(self.fd, size, access=mmap.ACCESS_READ) if size else None

    def read_into(self, offset: int, buffer: memoryview) -> int:
        if self.map is None:
            return 0
        # The size may have changed since the map was made; reading behind the end would be SIGBUS.
        count = max(0, min(len(buffer), os.fstat(self.fd).st_size - offset))
        with memoryview(self.map) as view:
            buffer[:count] = view[offset : offset + count]
        # The whole map, not just what was read: the kernel may have mapped a huge page around it.
        self.map.madvise(mmap.MADV_DONTNEED)
        start = max(0, offset - _DROP_LAG)
        os.posix_fadvise(self.fd, start, offset + count - start, os.POSIX_FADV_DONTNEED)
        return count

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        os.close(self.fd)


def check_io_mode(mode: str) -> None:
    """Refuse a word that is none of :data:`IO_MODES`.

    Raises:
        UsageError: it is none.
    """
    if mode not in IO_MODES:
        raise UsageError(f"--io {mode}: no such mode", remedy=f"choose one of {', '.join(IO_MODES)}")


class SourceFiles:
    """The source files that one thread reads; a bounded number of them is open at a time."""

    def __init__(self, mode: str) -> None:
        check_io_mode(mode)
        self._opener = _Mapped if mode == "mmap" else _Positional
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes of ``path`` from ``offset``.

        Raises:
            DamagedError: the file ends before.
            StorageError: the system refused.
        """
        try:
            count = self._file(path).read_into(offset, buffer)
        except OSError as error:
            raise StorageError(f"cannot read {len(buffer)} bytes at {offset}: {error.strerror}", where=path) from error
        if count != len(buffer):
            raise DamagedError(
                f"the file ends at byte {offset + count}, {len(buffer)} bytes from {offset} were to be read",
                where=path,
                remedy="it was cut off after it was opened, or is not copied completely",
            )

    def _file(self, path: Path) -> _OpenFile:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[path] = self._opener(path)
        return self._open[path]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()
