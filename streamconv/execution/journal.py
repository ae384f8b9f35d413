"""The journal of a run: its identity, and which of its tiles are durable. A killed run is resumed from it.

It is a text file. Each line is a JSON value and its CRC-32. A line that is not whole was being written when the run
ended; it and all that follows are ignored. The first line identifies the run: its source files by size, time of change
and a digest of their metadata, the user's choices, and a digest of every byte move and of every byte that does not come
from the source. Each further line names tiles whose bytes were durable before the line was written, and the CRC-32s of
these bytes, which a run that goes on holds against what it finds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from streamconv.core.errors import DestinationError
from streamconv.execution.tile_log import TileDone
from streamconv.io.checksums import crc32
from streamconv.io.durable import sync_folder, write_all
from streamconv.io.refusals import refusals

__all__ = ["Journal"]


class Journal:
    """The open journal of a run; a line is durable once it has been added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def read(self) -> Iterator[Any]:
        """The values of all whole lines.

        Raises:
            DestinationError: a whole line is not JSON.
            StorageError: the system refused.
        """
        with refusals("read the journal", self.path), self.path.open("rb") as file:
            for line in file:
                text, _, crc = line.rstrip(b"\n").rpartition(b" ")
                if not line.endswith(b"\n") or crc != b"%08x" % crc32(text):
                    return
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise self.unfit(error) from error
                yield value

    def tiles(self) -> Iterator[TileDone]:
        """The tiles of all whole lines but the first.

        Raises:
            DestinationError: a whole line has something else.
            StorageError: the system refused.
        """
        try:
            for line in islice(self.read(), 1, None):
                for entry in line:
                    yield _tile(*entry)
        except (TypeError, ValueError) as error:
            raise self.unfit(error) from error

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Begin a new journal.

        Raises:
            DiskSpaceError, StorageError: the system refused.
        """
        with refusals("write the journal", self.path):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            sync_folder(self.path.parent)
        self._add(identity)

    def add(self, done: Sequence[TileDone]) -> None:
        """Record tiles, whose bytes must be durable already.

        Raises:
            DiskSpaceError, StorageError: the system refused.
        """
        self._add(done)

    def replace(self, path: Path) -> None:
        """Take the place of another journal.

        Raises:
            DiskSpaceError, StorageError: the system refused.
        """
        with refusals("write the journal", path):
            self.path.replace(path)
            sync_folder(path.parent)
        self.path = path

    def _add(self, value: Any) -> None:
        text = json.dumps(value, separators=(",", ":")).encode()
        with refusals("write the journal", self.path):
            write_all(self._fd, b"%s %08x\n" % (text, crc32(text)))
            os.fdatasync(self._fd)

    def unfit(self, error: Exception) -> DestinationError:
        """The error to raise when a line cannot be of this conversion."""
        return DestinationError(
            f"the journal does not fit this conversion: {error}", where=self.path, remedy="say --restart"
        )

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _tile(job: Any, first: Any, last: Any, reads: Any, writes: Any) -> TileDone:
    if not isinstance(reads, list) or not isinstance(writes, list):
        raise TypeError("checksums are no lists")
    for number in (job, first, last, *reads, *writes):
        if type(number) is not int or abs(number) >= 1 << 63:
            raise TypeError(f"{number!r} is no number of a tile")
    if any(not 0 <= crc < 1 << 32 for crc in (*reads, *writes)):
        raise ValueError("a CRC-32 has 32 bits")
    return TileDone(job, first, last, tuple(reads), tuple(writes))
