"""Write output files at given offsets, past the page cache or with few pages waiting in it.

``direct`` writes the whole pages of a long write straight from the buffer. The rest at both ends, less than a page
each, goes through the page cache. No byte is written twice, so such a page is never written directly, and the two ways
cannot overwrite each other's bytes. Data in the page cache is pushed to the disk in windows (``sync_file_range``), and
its pages are dropped as soon as they are clean. So a long run neither fills the page cache nor stops for minutes in the
last ``fsync``, and fits a small memory cgroup.

Linux reports bytes that it could not write to one call only: after that the next sync of the file succeeds. So an
output remembers that a call has failed, and nothing that was written to it counts as durable from then on.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Condition
from typing import Protocol

from streamconv.io.direct import Buffer, is_direct, is_refusal, open_file, page_end, page_start
from streamconv.io.durable import wrote
from streamconv.io.refusals import refused_by_system

__all__ = ["DiscardedOutput", "Output", "OutputFileWriter"]

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
_NO_CALL = (errno.ESPIPE, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Output(Protocol):
    """The place that an engine writes to, such as a file; any thread may write any part of it.

    ``wants_pages``: whether a long write is faster from a position that is equal to the offset modulo a page.
    ``has_failed``: whether a write or a sync has failed, now or earlier.
    """

    wants_pages: bool
    has_failed: bool

    def write(self, offset: int, buffer: Buffer | bytes, position: int, nbytes: int) -> None:
        """Write ``nbytes`` of ``buffer`` from ``position`` at ``offset``."""

    def commit(self) -> None:
        """Make durable what was written so far."""


class DiscardedOutput:
    """An output that discards its bytes, to measure everything but the writing."""

    wants_pages = True
    has_failed = False

    def write(self, offset: int, buffer: Buffer | bytes, position: int, nbytes: int) -> None:
        """Discard the bytes."""

    def commit(self) -> None:
        """Do nothing: there is nothing to make durable."""


@cache
def _linux_call(name: str, *arguments: type) -> Callable[..., int] | None:
    """A function of the C library that Python does not wrap; None if the library does not have it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return None
    function.argtypes = arguments
    result: Callable[..., int] = function
    return result


class OutputFileWriter:
    """One output file of known size; any thread may write any part of it, each byte once."""

    def __init__(self, path: Path, nbytes: int, window: int, io: str = "direct", *, resume: bool = False) -> None:
        """Create ``path`` with ``nbytes``, and reserve its disk space where the file system can.

        Args:
            path: the file; it must not exist, and is no link.
            nbytes: its size.
            window: at most about twice as many bytes wait in the page cache for the disk.
            io: ``direct``; otherwise all writes go through the page cache.
            resume: open an existing file. One that is missing, or has another size, becomes a file of that size.

        Raises:
            DiskSpaceError: the disk is full.
            StorageError: the system refused.
        """
        self.path, self.window = path, window
        self.has_failed = False
        self._changed = Condition()
        self._pushes: set[int] = set()
        self._next_push = 0
        self._current: tuple[int, int] | None = None
        self._dirty = 0
        self._previous: tuple[int, int] | None = None
        self._fd = self._direct_fd = -1
        self.wants_pages = False
        with self._reported("open" if resume else "create"), ExitStack() as undo:
            undo.callback(self.close)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if resume else os.O_EXCL)
            self._fd = os.open(path, flags, 0o666)
            if not resume or os.fstat(self._fd).st_size != nbytes:
                os.ftruncate(self._fd, nbytes)
                self._reserve(nbytes)
            if io == "direct":
                self._direct_fd, self.wants_pages = open_file(path, os.O_RDWR | os.O_NOFOLLOW, direct=True)
            undo.pop_all()

    def write(self, offset: int, buffer: Buffer | bytes, position: int, nbytes: int) -> None:
        """Write ``nbytes`` of ``buffer`` from ``position`` at ``offset``.

        It is written directly if :func:`streamconv.io.direct.is_direct` says so.
        """
        view = memoryview(buffer)[position : position + nbytes]
        with self._reported(f"write {nbytes} bytes at {offset} to"):
            if self.wants_pages and is_direct(offset, buffer, position, nbytes):
                first, last = page_end(offset) - offset, page_start(offset + nbytes) - offset
                if self._write_direct(offset + first, view[first:last]):
                    _write(self._fd, offset, view[:first])
                    _write(self._fd, offset + last, view[last:])
                    return
            _write(self._fd, offset, view)
        self._written(offset, offset + nbytes)

    def commit(self) -> None:
        """Make durable what was written so far, and drop its pages from the cache.

        Then ``has_failed`` is true if any call so far was told that bytes of the file could not be written.
        """
        with self._reported("sync"):
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with self._changed:
            # A push that another thread began before may have got the error in place of this sync.
            begun = self._next_push
            self._changed.wait_for(lambda: not any(push < begun for push in self._pushes))

    def settle(self) -> None:
        """Let what an earlier run wrote go to the disk, and drop its pages: what is read next is what the disk has.

        An error is not raised. It may tell of bytes that were lost long ago, and whoever reads them back sees that.
        """
        with suppress(OSError):
            os.fdatasync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish(self) -> None:
        """Make the file durable and close it."""
        with self._reported("sync"):
            os.fsync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.close()

    def close(self) -> None:
        """Close the file without a sync."""
        open_now, self._fd, self._direct_fd = (self._fd, self._direct_fd), -1, -1
        with ExitStack() as closing:
            for fd in open_now:
                if fd >= 0:
                    closing.callback(os.close, fd)

    def _reserve(self, nbytes: int) -> None:
        call = _linux_call("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if nbytes and call is not None and call(self._fd, 0, 0, nbytes) != 0:
            code = ctypes.get_errno()
            if code not in _NO_CALL:
                raise OSError(code, os.strerror(code))

    def _write_direct(self, offset: int, view: memoryview) -> bool:
        """Write whole pages past the cache; False, with nothing written, where the file system refuses that."""
        try:
            done = os.pwrite(self._direct_fd, view, offset) if view else 0
        except OSError as error:
            if not is_refusal(error):
                raise
            self.wants_pages = False
            return False
        # A write that the system cut short is finished through the cache.
        _write(self._fd, offset + done, view[done:])
        return True

    def _written(self, start: int, stop: int) -> None:
        with self._changed:
            low, high = self._current or (start, stop)
            self._current = min(low, start), max(high, stop)
            self._dirty += stop - start
            if self._dirty < self.window:
                return
            full, behind = self._current, self._previous
            self._previous, self._current, self._dirty = full, None, 0
        self._push(full, _WRITE)
        if behind is not None:
            self._push(behind, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
            os.posix_fadvise(self._fd, behind[0], behind[1] - behind[0], os.POSIX_FADV_DONTNEED)

    def _push(self, span: tuple[int, int], flags: int) -> None:
        call = _linux_call("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        with self._pushing(), self._reported("sync"):
            if call is None:
                os.fdatasync(self._fd)
            elif call(self._fd, span[0], span[1] - span[0], flags) != 0:
                code = ctypes.get_errno()
                if code not in _NO_CALL:
                    raise OSError(code, os.strerror(code))
                os.fdatasync(self._fd)

    @contextmanager
    def _pushing(self) -> Iterator[None]:
        with self._changed:
            number = self._next_push
            self._next_push += 1
            self._pushes.add(number)
        try:
            yield
        finally:
            with self._changed:
                self._pushes.remove(number)
                self._changed.notify_all()

    def _reported(self, verb: str) -> _Reported:
        return _Reported(verb, self)


def _write(fd: int, offset: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += wrote(os.pwrite(fd, view[done:], offset + done))


class _Reported:
    """Turns an OSError into one of ours, and lets the output remember it; ``verb`` is what was being done to it."""

    def __init__(self, verb: str, output: OutputFileWriter) -> None:
        self.verb, self.output = verb, output

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            self.output.has_failed = True
            raise refused_by_system(f"{self.verb} the file", error, self.output.path) from error
