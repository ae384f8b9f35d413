"""Read a source's bytes at given offsets, and release the pages that were read.

The user chooses one of two ways with ``--io``. ``direct`` goes past the page cache, unless the cache already has most
of the file; where the file system has no direct transfers it works like ``pread``. ``pread`` goes through the page
cache and drops what it read. A map of the file is not offered: it was slower, its pages count as resident memory, and
an I/O error or a file that becomes shorter is a SIGBUS there, which no Python code can turn into a message.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from streamconv.core.errors import UsageError
from streamconv.io.direct import Buffer, is_direct, is_refusal, open_file, page_end, page_start
from streamconv.io.reading import ended_early, fill, refused_read

__all__ = ["IO_MODES", "OPEN_FILES", "SourceFiles", "check_io_mode"]

IO_MODES = ("direct", "pread")
OPEN_FILES = 32
"""The most files that one thread has open."""
# One drop of the pages just read leaves some behind (readahead still holds them): they are dropped again later.
_DROP_LAG = 64 << 20
# Dropping after each short read would cost more than the read.
_DROP_NBYTES = 1 << 20
_CACHESTAT = 451


class _OpenFile(Protocol):
    def read_into(self, offset: int, buffer: Buffer, position: int, nbytes: int) -> int: ...

    def close(self) -> None: ...


class _Positional:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.low, self.high, self.undropped = sys.maxsize, 0, 0

    def read_into(self, offset: int, buffer: Buffer, position: int, nbytes: int) -> int:
        done = fill(self.fd, offset, memoryview(buffer)[position : position + nbytes])
        self.low, self.high = min(self.low, offset), max(self.high, offset + done)
        self.undropped += done
        if self.undropped >= _DROP_NBYTES:
            start = max(0, self.low - _DROP_LAG)
            os.posix_fadvise(self.fd, start, self.high - start, os.POSIX_FADV_DONTNEED)
            self.low, self.high, self.undropped = sys.maxsize, 0, 0
        return done

    def close(self) -> None:
        os.close(self.fd)


class _Direct:
    """Long reads go past the page cache, in whole pages around the wanted bytes; short ones go through it."""

    def __init__(self, path: Path) -> None:
        self.buffered = _Positional(path)
        with ExitStack() as undo:
            undo.callback(self.buffered.close)
            self.fd, self.direct = open_file(path, os.O_RDONLY, direct=True)
            undo.pop_all()
        self.warm = _mostly_cached(self.fd)

    def read_into(self, offset: int, buffer: Buffer, position: int, nbytes: int) -> int:
        if self.warm:
            return fill(self.buffered.fd, offset, memoryview(buffer)[position : position + nbytes])
        if self.direct and is_direct(offset, buffer, position, nbytes):
            before, end = offset - page_start(offset), page_end(offset + nbytes)
            pages = memoryview(buffer)[position - before : position - before + end - page_start(offset)]
            try:
                if os.preadv(self.fd, [pages], offset - before) >= before + nbytes:
                    return nbytes
            except OSError as error:
                if not is_refusal(error):
                    raise
                self.direct = False
        return self.buffered.read_into(offset, buffer, position, nbytes)

    def close(self) -> None:
        self.buffered.close()
        os.close(self.fd)


def _mostly_cached(fd: int) -> bool:
    """Whether most of a file is in the page cache: Linux's ``cachestat`` (6.5), which Python does not wrap."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    whole, counts = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    if syscall(_CACHESTAT, fd, whole, counts, 0) != 0:
        return False
    return int(counts[0]) * mmap.PAGESIZE * 2 > os.fstat(fd).st_size


_OPENERS: dict[str, Callable[[Path], _OpenFile]] = {"direct": _Direct, "pread": _Positional}


def check_io_mode(mode: str) -> None:
    """Check that ``mode`` is one of :data:`IO_MODES`.

    Raises:
        UsageError: it is not.
    """
    if mode not in IO_MODES:
        raise UsageError(f"--io {mode}: no such mode", remedy=f"choose one of {', '.join(IO_MODES)}")


class SourceFiles:
    """The source files that one thread reads; a bounded number of them is open at a time."""

    def __init__(self, mode: str) -> None:
        check_io_mode(mode)
        self._opener = _OPENERS[mode]
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()

    def read_into(self, path: Path, offset: int, buffer: Buffer, position: int, nbytes: int) -> None:
        """Read ``nbytes`` at ``offset`` of ``path`` into ``buffer`` at ``position``.

        A direct read (:func:`streamconv.io.direct.is_direct`) may also overwrite the rest of the first and the last
        page of these bytes in the buffer.

        Whoever knows these bytes has seen the file when it was long enough for them.

        Raises:
            StorageError: the system refused, or the file ends before ``offset + nbytes``.
        """
        try:
            count = self._file(path).read_into(offset, buffer, position, nbytes)
        except OSError as error:
            raise refused_read(path, offset, nbytes, error) from error
        if count != nbytes:
            raise ended_early(path, offset, nbytes, count)

    def _file(self, path: Path) -> _OpenFile:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[path] = self._opener(path)
        return self._open[path]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()
