"""Write a small file from its beginning to its end, or copy one: durable when done, and no pages left in the cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from streamconv.core.errors import DamagedError, DestinationError
from streamconv.io.output import OutputFileWriter
from streamconv.io.reading import InputFile, reading, status_of
from streamconv.io.refusals import refusals

__all__ = ["check_place", "copy_file", "write_file"]

_PIECE = 1 << 20
_HEAD = 4096


def write_file(path: Path, nbytes: int, pieces: Iterable[bytes]) -> None:
    """Write a file of ``nbytes``, replacing an existing one.

    Raises:
        DiskSpaceError, StorageError: the system refused.
    """
    done = 0
    with refusals("write the file", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with closing(OutputFileWriter(path, nbytes, _PIECE, "pread")) as writer:
            for piece in pieces:
                writer.write(done, piece, 0, len(piece))
                done += len(piece)
            writer.finish()


def check_place(path: Path, mark: bytes) -> None:
    """Check a place for a report before it is made: none may replace what is no such report, such as a checkpoint.

    Args:
        path: where it is to be written.
        mark: what the first bytes of such a report contain.

    Raises:
        DestinationError: something else is there, or there is no such folder.
        StorageError: the system refused to look.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "a folder" if path.is_dir() else "in a folder that is not there"
        raise DestinationError(
            f"cannot write to it: {what}", where=path, remedy="choose a file in a folder that is there"
        )
    if not path.is_file():
        return
    with reading(path) as file:
        head = file.read(0, _HEAD)
    if head and mark not in head:
        raise DestinationError(
            "it holds something else, which would be replaced", where=path, remedy="choose another file, or remove it"
        )


def copy_file(origin: Path, path: Path) -> None:
    """Copy a file byte for byte, replacing an existing one.

    Raises:
        SourceError: ``origin`` is not a regular file, nor a link to one.
        DamagedError: ``origin`` was changed while it was copied.
        DiskSpaceError, StorageError: the system refused, or ``origin`` has become shorter.
    """
    with reading(origin) as file:
        write_file(path, file.nbytes, _pieces(file))
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if status_of(origin).st_size != file.nbytes:
        raise DamagedError(
            "the file was changed while it was copied", where=origin, remedy="convert when nothing writes to it"
        )


def _pieces(file: InputFile) -> Iterable[bytes]:
    """A file in pieces."""
    return (file.read(offset, _PIECE) for offset in range(0, file.nbytes, _PIECE))
