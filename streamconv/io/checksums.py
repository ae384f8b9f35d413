"""CRC-32s of records that are read or written in pieces, in any order, by several threads.

Checksums are computed as the bytes stream by (isal's ``crc32`` runs faster than memory is copied) and joined with
``crc32_combine``, so a record's checksum is known when its last piece has passed, without a second look.
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


def crc32(data: bytes | memoryview) -> int:
    """The CRC-32 of zip files and of ``zlib``."""
    return int(isal_zlib.crc32(data))


# A transposed tensor is read in many short runs; about 10 MiB remember so many.
_MOST_WAITING = 1 << 16


@dataclass(slots=True)
class _Progress:
    position: int = 0
    crc: int = 0
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)


class ChecksumBook(Generic[K]):
    """Running CRC-32s by record."""

    def __init__(self, most: int | None = None) -> None:
        """With ``most``, a record of which more pieces wait for those before them is given up."""
        self._lock = Lock()
        self._records: dict[K, _Progress] = {}
        self._most = float("inf") if most is None else most

    def add(self, key: K, start: int, nbytes: int, crc: int) -> None:
        """Count ``nbytes`` of a record from byte ``start``, whose CRC-32 is ``crc``. A piece that was counted before
        changes nothing.
        """
        with self._lock:
            record = self._records.setdefault(key, _Progress())
            if len(record.waiting) >= self._most:
                record.waiting.clear()
                record.position = -1
            if start >= record.position >= 0:
                known = record.waiting.get(start, (0, 0))
                record.waiting[start] = max(known, (nbytes, crc))
            while record.position in record.waiting:
                length, crc = record.waiting.pop(record.position)
                record.crc = isal_zlib.crc32_combine(record.crc, crc, length)
                record.position += length

    def whole(self, key: K, nbytes: int) -> int | None:
        """The CRC-32 of a record of ``nbytes``, or None if not all of it has passed."""
        with self._lock:
            record = self._records.get(key, _Progress())
            return record.crc if record.position == nbytes else None

    def records(self) -> list[K]:
        """The records of which anything has passed."""
        with self._lock:
            return list(self._records)


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """How many storages were read whole and are as recorded, were read in part, and have no checksum recorded."""

    checked: int
    in_part: int
    without_crc: int


class SourceChecksums:
    """Holds what is read of a source against the checksums that its files record."""

    def __init__(self) -> None:
        self._book = ChecksumBook[Storage](_MOST_WAITING)

    def add(self, storage: Storage, start: int, nbytes: int, crc: int) -> None:
        """Count ``nbytes`` of a storage from byte ``start``, whose CRC-32 is ``crc``.

        Raises:
            DamagedError: with these the storage has been read whole, and is not what was written.
        """
        self._book.add(storage, start, nbytes, crc)
        whole = self._book.whole(storage, storage.nbytes)
        if storage.crc is not None and whole not in (None, storage.crc):
            raise DamagedError(
                f"record {storage.name}: its CRC-32 is {whole:08x}, recorded is {storage.crc:08x}",
                where=storage.path,
                remedy="its bytes have changed since it was saved: copy the file again from where it was trained",
            )

    def verdict(self) -> RecordCounts:
        """How it went; a storage that is wrong was refused when its last byte came."""
        checked = in_part = without = 0
        for storage in self._book.records():
            if storage.crc is None:
                without += 1
            elif self._book.whole(storage, storage.nbytes) is None:
                in_part += 1
            else:
                checked += 1
        return RecordCounts(checked, in_part, without)
