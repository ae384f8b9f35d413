"""Write a small file from its beginning to its end, or copy one: durable when done, and no pages left in the cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from streamconv.core.errors import DamagedError, SourceError
from streamconv.io.output import OutputFileWriter, refused_by_system

__all__ = ["copy_file", "write_file"]

_PIECE = 1 << 20


def write_file(path: Path, nbytes: int, pieces: Iterable[bytes]) -> int:
    """Write a file of ``nbytes``, replacing an existing one; returns how many bytes the pieces had.

    Raises:
        DiskSpaceError, StorageError: the system refused.
    """
    done = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with closing(OutputFileWriter(path, nbytes, _PIECE, "pread")) as writer:
            for piece in pieces:
                writer.write(done, piece, 0, len(piece))
                done += len(piece)
            writer.finish()
    except OSError as error:
        raise refused_by_system("write the file", error, path) from error
    return done


def copy_file(origin: Path, path: Path) -> None:
    """Copy a file byte for byte, replacing an existing one.

    Raises:
        SourceError: ``origin`` is not a regular file, nor a link to one.
        DamagedError: ``origin`` was changed while it was copied.
        DiskSpaceError, StorageError: the system refused.
    """
    try:
        if not origin.is_file():
            raise SourceError("not a regular file; it cannot be copied", where=origin)
        with origin.open("rb", buffering=0) as file:
            nbytes = os.fstat(file.fileno()).st_size
            copied = write_file(path, nbytes, _pieces(file.fileno(), origin))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise refused_by_system("copy the file", error, origin) from error
    if copied != nbytes:
        raise DamagedError(
            "the file was changed while it was copied", where=origin, remedy="convert when nothing writes to it"
        )


def _pieces(fd: int, origin: Path) -> Iterable[bytes]:
    """The rest of an open file, in pieces."""
    try:
        while piece := os.read(fd, _PIECE):
            yield piece
    except OSError as error:
        raise refused_by_system("read the file", error, origin) from error
