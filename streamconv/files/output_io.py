"""Write output files by position, and keep the pages that wait for the disk few.

Written data is pushed to the disk in windows (``sync_file_range``) and its pages are dropped as soon as they are
clean, so a long run neither fills the page cache nor stops for minutes in the last ``fsync``, and fits a small memory
cgroup.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock

from streamconv.errors import DiskSpaceError, StorageError

__all__ = ["OutputFileWriter", "refused_by_system"]

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
_FULL = (errno.ENOSPC, errno.EDQUOT)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's call, which Python does not wrap; None elsewhere."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    result: Callable[[int, int, int, int], int] = function
    return result


class OutputFileWriter:
    """One output file of known size; any thread may write any part of it."""

    def __init__(self, path: Path, nbytes: int, window: int) -> None:
        """Create ``path``, ``nbytes`` long; at most about twice ``window`` bytes of it wait in the page cache.

        Raises:
            DiskSpaceError: the disk is full.
            StorageError: the system refused.
        """
        self.path, self.window = path, window
        self._lock = Lock()
        self._current: tuple[int, int] | None = None
        self._dirty = 0
        self._previous: tuple[int, int] | None = None
        with self._reported("create"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._fd, nbytes)

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write ``data`` at ``offset``."""
        view = memoryview(data)
        with self._reported(f"write {len(view)} bytes at {offset} to"):
            done = 0
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
        self._written(offset, offset + len(view))

    def finish(self) -> None:
        """Make the file durable and close it."""
        with self._reported("sync"):
            os.fsync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.close()

    def close(self) -> None:
        """Close the file as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _written(self, start: int, stop: int) -> None:
        with self._lock:
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
        call = _sync_file_range()
        with self._reported("sync"):
            if call is None:
                os.fdatasync(self._fd)
            elif call(self._fd, span[0], span[1] - span[0], flags) != 0:
                code = ctypes.get_errno()
                if code not in (errno.ESPIPE, errno.EINVAL, errno.ENOSYS):
                    raise OSError(code, os.strerror(code))
                os.fdatasync(self._fd)

    def _reported(self, verb: str) -> _Reported:
        return _Reported(verb, self.path)


def refused_by_system(what: str, error: OSError, where: Path) -> DiskSpaceError | StorageError:
    """What the operating system's refusal to ``what`` is to the user: a full disk, or any other reason."""
    full = error.errno in _FULL
    return (DiskSpaceError if full else StorageError)(
        f"cannot {what}: {error.strerror}",
        where=error.filename or where,
        remedy="free disk space and run the same command again" if full else "run the same command again",
    )


class _Reported:
    """Turns an OSError into ours, with what was being done."""

    def __init__(self, verb: str, path: Path) -> None:
        self.verb, self.path = verb, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise refused_by_system(f"{self.verb} the file", error, self.path) from error
