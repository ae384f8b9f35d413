"""What the standard library lacks for folders: exchange two names in one step, make names and small files durable."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange", "make_folders", "sync_folder", "write_all", "write_text", "wrote"]

_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot.

    This is Linux's ``renameat2`` with ``RENAME_EXCHANGE``, which Python does not wrap.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    if call is None:
        return False
    if call(at_cwd, os.fsencode(first.absolute()), at_cwd, os.fsencode(second.absolute()), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those that it is in, and make their names durable; returns those made, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if os.path.lexists(folder):
            raise
        raise FileNotFoundError(errno.ENOENT, "the folder was there, and has just been removed", folder) from None
    for each in reversed(missing):
        sync_folder(each.parent)
    return missing


def write_text(path: Path, text: str) -> None:
    """Put a small file in its place, whole and durable but for its name, for which the folder is to be synced."""
    written = path.with_name(f"{path.name}.part")
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        write_all(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    written.rename(path)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes at the descriptor's position."""
    view = memoryview(data)
    while view:
        view = view[wrote(os.write(descriptor, view)) :]


def wrote(count: int) -> int:
    """The number of bytes that a write of at least one has written.

    Raises:
        OSError: none, which would be tried for ever.
    """
    if count == 0:
        raise OSError(errno.EIO, "the system wrote nothing, and gave no reason")
    return count
