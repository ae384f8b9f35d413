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

from streamconv.boxes import Storage
from streamconv.errors import DamagedError

__all__ = ["ChecksumBook", "Verdict", "verify_storages"]

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Progress:
    position: int = 0
    crc: int = 0
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)


class ChecksumBook(Generic[K]):
    """Running CRC-32s by record."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._records: dict[K, _Progress] = {}

    def add(self, key: K, start: int, data: memoryview) -> None:
        """Count ``data``, the bytes of a record from byte ``start``. A piece that was counted before changes
        nothing.
        """
        crc = isal_zlib.crc32(data)
        with self._lock:
            record = self._records.setdefault(key, _Progress())
            if start >= record.position:
                known = record.waiting.get(start, (0, 0))
                record.waiting[start] = max(known, (len(data), crc))
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
class Verdict:
    """How many storages were read whole and are as recorded, were read in part, and have no checksum recorded."""

    checked: int
    in_part: int
    without_crc: int


def verify_storages(book: ChecksumBook[Storage]) -> Verdict:
    """Hold what was read against the checksums that the files record.

    Raises:
        DamagedError: a storage that was read whole is not what was written.
    """
    checked = in_part = without = 0
    for storage in book.records():
        crc = book.whole(storage, storage.nbytes)
        if storage.crc is None:
            without += 1
        elif crc is None:
            in_part += 1
        elif crc == storage.crc:
            checked += 1
        else:
            raise DamagedError(
                f"record {storage.name}: its CRC-32 is {crc:08x}, recorded is {storage.crc:08x}",
                where=storage.path,
                remedy="its bytes have changed since it was saved: copy the file again from where it was trained",
            )
    return Verdict(checked, in_part, without)
