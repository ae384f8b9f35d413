"""Read the rest of records that were read in part, so that their CRC-32s can be compared.

A conversion leaves padding rows out, and a comparison what only one side has. A flipped bit in the bytes that were used
is found only if the record's other bytes are read too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from streamconv.core.counting import Counted
from streamconv.core.pool import run_pool
from streamconv.core.views import Storage
from streamconv.io.checksums import SourceChecksums, crc32
from streamconv.io.direct import DIRECT_NBYTES, PAGE, Buffer, page_start
from streamconv.io.source import SourceFiles

__all__ = ["Reader", "read_unread"]

Reader = tuple[SourceFiles, Buffer]
"""The open files of one thread, and a buffer of at least three pages that it may overwrite."""


class _Stretch(NamedTuple):
    """``nbytes`` of a storage from byte ``start``."""

    storage: Storage
    start: int
    nbytes: int


def read_unread(
    checksums: SourceChecksums,
    readers: Sequence[Reader],
    count: Counted | None = None,
) -> int:
    """Read the rest of the records that were read in part and have a CRC-32; returns the number of bytes.

    Args:
        checksums: what has been read so far. The rest is entered into them, which compares the CRC-32s.
        readers: one for each thread.
        count: expects these bytes too, and counts them.

    Raises:
        DamagedError: a record's CRC-32 is not the recorded one.
        StorageError: the system refused to read, or a file has become shorter.
    """
    count = count or Counted(0, None)

    def read(reader: Reader, part: _Stretch) -> None:
        files, buffer = reader
        offset = part.storage.offset + part.start
        position = offset % PAGE
        files.read_into(part.storage.path, offset, buffer, position, part.nbytes)
        crc = crc32(memoryview(buffer)[position : position + part.nbytes])
        checksums.add(part.storage, part.start, part.nbytes, crc)
        count(part.nbytes)

    block = page_start(min(len(buffer) for _, buffer in readers)) - 2 * PAGE
    nbytes = 0
    # Threads may pass one another so that a piece is forgotten; what is missing then is read once more.
    while stretches := list(_joined(_Stretch(*part) for part in checksums.unread())):
        wanted = sum(stretch.nbytes for stretch in stretches)
        count.expect(wanted)
        run_pool(readers, _cut(stretches, block), read)
        nbytes += wanted
    return nbytes


def _joined(parts: Iterable[_Stretch]) -> Iterator[_Stretch]:
    """The stretches, those that are near to one another joined: a read for each would take longer than reading the
    bytes between them again.
    """
    held: _Stretch | None = None
    for part in parts:
        if held is not None and part.storage == held.storage:
            gap = part.start - held.start - held.nbytes
            if gap < DIRECT_NBYTES:
                held = _Stretch(held.storage, held.start, held.nbytes + gap + part.nbytes)
                continue
        if held is not None:
            yield held
        held = part
    if held is not None:
        yield held


def _cut(stretches: Iterable[_Stretch], nbytes: int) -> Iterator[_Stretch]:
    """The stretches in parts that end on a page of the file and span at most ``nbytes`` from a page."""
    for storage, start, length in stretches:
        end = start + length
        while start < end:
            stop = min(end, page_start(storage.offset + start) + nbytes - storage.offset)
            yield _Stretch(storage, start, stop - start)
            start = stop
