"""What the system refused, as one of our errors, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamconv.core.errors import DiskSpaceError, StorageError

__all__ = ["refusals", "refused_by_system"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = "when the storage works again, run the same command again"
# For all other errors nobody here knows what helps, so nothing is said.
_REMEDIES = {
    **dict.fromkeys(_FULL, "free disk space and run the same command again"),
    **dict.fromkeys((errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ESTALE), _AGAIN),
    **dict.fromkeys((errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH), _AGAIN),
    **dict.fromkeys((errno.EINTR, errno.EAGAIN, errno.EBUSY), "run the same command again"),
    errno.ENOMEM: "the system is out of memory: run the same command again when it has some",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "get the right to do that, or choose another place"),
    errno.EROFS: "it is mounted to be read only: mount it to be written, or choose another place",
    errno.EFBIG: "a file may not be so long there (ulimit -f, or the file system's limit): raise it, or choose another "
    "place",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.ENFILE: "the system has too many files open: run the same command again when it has fewer",
    errno.ENAMETOOLONG: "choose a place with a shorter name",
}


def refused_by_system(what: str, error: OSError, where: Path | None = None) -> DiskSpaceError | StorageError:
    """The error to raise when the system refused to ``what``: :class:`DiskSpaceError` if the disk is full.

    Args:
        what: a verb and its object, as in "read the file".
        error: the system's error; if it names a file, that is where.
        where: the file or folder otherwise.
    """
    return (DiskSpaceError if error.errno in _FULL else StorageError)(
        f"cannot {what}: {error.strerror or error}",
        where=error.filename or where,
        remedy=None if error.errno is None else _REMEDIES.get(error.errno),
    )


@contextmanager
def refusals(what: str, where: Path) -> Iterator[None]:
    """Raise what the system refuses inside as :func:`refused_by_system` has it."""
    try:
        yield
    except OSError as error:
        raise refused_by_system(what, error, where) from error
