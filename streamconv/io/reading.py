"""Read bytes at given offsets of a file. All that is read of a checkpoint, metadata and tensors, is read here.

A file has the size that it had when it was opened. What would lie behind that is not there: a file that speaks of such
bytes was cut off before, and who reads it calls it damaged. A byte before that end can be read, or else the storage is
in trouble: the system reports an error, or the file was made shorter meanwhile. That is a :class:`StorageError` with
the file and the offset. A read that the system cuts short is continued.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from streamconv.core.errors import DiskSpaceError, SourceError, StorageError
from streamconv.core.identity import FileIdentity
from streamconv.io.refusals import refused_by_system

__all__ = ["InputFile", "ended_early", "fill", "nbytes_there", "reading", "refused_read", "status_of"]


def fill(descriptor: int, offset: int, buffer: memoryview) -> int:
    """Read into the whole buffer, as far as the file reaches; returns the number of bytes read.

    Raises:
        OSError: the system refused.
    """
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], offset + done)):
        done += count
    return done


def refused_read(path: Path, offset: int, nbytes: int, error: OSError) -> DiskSpaceError | StorageError:
    """The error to raise when the system refused to read."""
    return refused_by_system(f"read {nbytes} bytes at {offset}", error, path)


def ended_early(path: Path, offset: int, nbytes: int, count: int) -> StorageError:
    """The error to raise when only ``count`` bytes could be read, of a file that was longer when it was opened."""
    return StorageError(
        f"cannot read {nbytes} bytes at {offset}: {count} are there, all were when the file was opened",
        where=path,
        remedy="it was cut off meanwhile, or its storage fails: wait until nothing writes to it, or copy it again",
    )


class InputFile:
    """A file that is open to be read, the number of bytes that it had when it was opened, and its identity: that has
    all that is read until it is closed.
    """

    def __init__(self, path: Path, descriptor: int, status: os.stat_result) -> None:
        self.path, self.descriptor, self.nbytes = path, descriptor, status.st_size
        self.identity = FileIdentity(path, status.st_size, status.st_mtime_ns)
        self._digest = hashlib.sha256()

    def read(self, offset: int, nbytes: int) -> bytes:
        """``nbytes`` from ``offset``; fewer only where the file ended when it was opened.

        Raises:
            StorageError: the system refused, or the file has become shorter.
        """
        data = bytearray(max(0, min(nbytes, self.nbytes - offset)))
        try:
            count = fill(self.descriptor, offset, memoryview(data))
        except OSError as error:
            raise refused_read(self.path, offset, len(data), error) from error
        if count < len(data):
            raise ended_early(self.path, offset, len(data), count)
        self.identity.ranges.append((offset, len(data)))
        self._digest.update(data)
        return bytes(data)

    def close(self) -> None:
        """Close the file; its identity is then complete."""
        self.identity.digest = self._digest.digest()
        os.close(self.descriptor)


def status_of(path: Path) -> os.stat_result:
    """What the system knows about a file: its size, its times, its kind.

    Raises:
        SourceError: there is no such file.
        StorageError: the system refused.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError("no such file", where=path) from error
    except OSError as error:
        raise refused_by_system("find the file", error, path) from error


def nbytes_there(paths: Iterable[Path]) -> int:
    """The bytes of those files that are there: a link to what is not there has none."""
    return sum(path.stat().st_size for path in paths if path.is_file())


@contextmanager
def reading(path: Path) -> Iterator[InputFile]:
    """Open a file to read it.

    Raises:
        SourceError: there is no such file, or it is a folder or a device.
        StorageError: the system refused.
    """
    if not stat.S_ISREG(status_of(path).st_mode):
        raise SourceError("not a file", where=path)
    with ExitStack() as opened:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            status = os.fstat(descriptor)
        except FileNotFoundError as error:
            raise SourceError("no such file", where=path) from error
        except OSError as error:
            raise refused_by_system("open the file", error, path) from error
        opened.pop_all()
        yield opened.enter_context(closing(InputFile(path, descriptor, status)))
