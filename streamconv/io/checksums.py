"""CRC-32s of records that are read or written in pieces, in any order, by several threads.

Checksums are computed as the bytes stream by (isal's ``crc32`` runs faster than memory is copied) and joined with
``crc32_combine``, so a record's checksum is known when its last piece has passed, without a second read.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from isal import isal_zlib

from streamconv.core.errors import DamagedError
from streamconv.core.views import Storage

__all__ = ["ChecksumBook", "RecordCounts", "SourceChecksums", "crc32"]

K = TypeVar("K", bound=Hashable)


def crc32(data: bytes | memoryview, before: int = 0) -> int:
    """The CRC-32 of zip files and of ``zlib``; ``before`` is that of the bytes in front of these."""
    return int(isal_zlib.crc32(data, before))


# A transposed tensor is read in many short runs; so many waiting runs take about 10 MiB.
_MOST_WAITING = 1 << 16


@dataclass(slots=True)
class _Progress:
    position: int = 0
    crc: int = 0
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)


class ChecksumBook(Generic[K]):
    """Running CRC-32s by record."""

    def __init__(self, most: int | None = None) -> None:
        """With ``most``, that many pieces of a record may wait for earlier ones; then all that wait are forgotten."""
        self._lock = Lock()
        self._records: dict[K, _Progress] = {}
        self._most = float("inf") if most is None else most

    def add(self, key: K, start: int, nbytes: int, crc: int) -> None:
        """Add ``nbytes`` of a record from byte ``start``, whose CRC-32 is ``crc``. Adding a piece again changes
        nothing.
        """
        with self._lock:
            record = self._records.setdefault(key, _Progress())
            if start > record.position and len(record.waiting) >= self._most:
                record.waiting.clear()
            if start >= record.position:
                known = record.waiting.get(start, (0, 0))
                record.waiting[start] = max(known, (nbytes, crc))
            while record.position in record.waiting:
                length, crc = record.waiting.pop(record.position)
                record.crc = isal_zlib.crc32_combine(record.crc, crc, length)
                record.position += length

    def whole(self, key: K, nbytes: int) -> int | None:
        """The CRC-32 of a record of ``nbytes``; None while a part of it is missing."""
        with self._lock:
            record = self._records.get(key, _Progress())
            return record.crc if record.position == nbytes else None

    def missing(self, key: K, nbytes: int) -> list[tuple[int, int]]:
        """The parts of a record of ``nbytes``, as (start, nbytes), that complete its CRC-32 once they are added."""
        with self._lock:
            record = self._records.get(key, _Progress())
            position, waiting = record.position, sorted(record.waiting.items())
        parts = []
        for start, (length, _) in waiting:
            # A piece that begins inside an earlier one cannot be joined to it.
            if start >= position:
                if start > position:
                    parts.append((position, start - position))
                position = start + length
        return [*parts, (position, nbytes - position)] if position < nbytes else parts

    def records(self) -> list[K]:
        """The records that have at least one piece."""
        with self._lock:
            return list(self._records)


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """The numbers of storages that were read whole and are intact, were read in part, and have no recorded CRC-32."""

    checked: int
    in_part: int
    without_crc: int


class SourceChecksums:
    """Compares the bytes read from a source with the checksums that its files record."""

    def __init__(self) -> None:
        self._book = ChecksumBook[Storage](_MOST_WAITING)

    def add(self, storage: Storage, start: int, nbytes: int, crc: int) -> None:
        """Add ``nbytes`` of a storage from byte ``start``, whose CRC-32 is ``crc``.

        Raises:
            DamagedError: these bytes complete the storage, and its CRC-32 is not the recorded one.
        """
        self._book.add(storage, start, nbytes, crc)
        whole = self._book.whole(storage, storage.nbytes)
        if storage.crc is not None and whole not in (None, storage.crc):
            raise DamagedError(
                f"record {storage.name}: its CRC-32 is {whole:08x}, recorded is {storage.crc:08x}",
                where=storage.path,
                remedy="its bytes have changed since it was saved: copy the file again from where it was trained",
            )

    def unread(self) -> list[tuple[Storage, int, int]]:
        """The parts, as (storage, start, nbytes), that are missing of the storages with a CRC-32 that were begun, in
        the order of the files.
        """
        begun = sorted(
            (storage for storage in self._book.records() if storage.crc is not None),
            key=lambda storage: (storage.path, storage.offset),
        )
        return [(storage, *part) for storage in begun for part in self._book.missing(storage, storage.nbytes)]

    def verdict(self) -> RecordCounts:
        """The counts so far; :meth:`add` has already refused any storage with a wrong CRC-32."""
        checked = in_part = without = 0
        for storage in self._book.records():
            if storage.crc is None:
                without += 1
            elif self._book.whole(storage, storage.nbytes) is None:
                in_part += 1
            else:
                checked += 1
        return RecordCounts(checked, in_part, without)
