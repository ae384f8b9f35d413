"""Plan the file that ``torch.save`` would write, with every byte's place known before the first is written.

The zip dialect is that of ``caffe2/serialize/inline_container.cc`` and its miniz: local headers with flags 0x808 and
zero CRC and sizes, a data descriptor after each record, data aligned to 64 bytes by an ``FB`` extra field of Z's,
zip64 fields where a size or an offset reaches 2^32 - 1, always a zip64 end record. The tests compare the result byte by
byte with torch's own files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from streamconv.containers.pickles.reader import leaves_of
from streamconv.containers.pickles.writer import StoredTensor, dumps

__all__ = ["TorchLayout", "plan_torch_file"]

_ALIGNMENT = 64
_LIMIT32 = 0xFFFFFFFF
_FLAGS = 0x808
_HAS_DESCRIPTOR = 0x008


@dataclass(frozen=True, slots=True)
class _Record:
    name: bytes
    header_offset: int
    extra: bytes
    offset: int
    nbytes: int
    content: bytes | None

    @property
    def is_zip64(self) -> bool:
        return self.nbytes >= _LIMIT32 or self.header_offset >= _LIMIT32

    @property
    def descriptor_nbytes(self) -> int:
        return (24 if self.is_zip64 else 16) if self.nbytes else 0

    @property
    def directory_nbytes(self) -> int:
        return 46 + len(self.name) + len(_zip64_extra(self.nbytes, self.nbytes, self.header_offset))

    @property
    def flags(self) -> int:
        # For an empty record miniz neither announces nor writes a data descriptor.
        return _FLAGS if self.nbytes else _FLAGS & ~_HAS_DESCRIPTOR

    def header(self) -> bytes:
        fields = (0x04034B50, 0, self.flags, 0, 0, 0, 0, 0, 0, len(self.name), len(self.extra))
        return struct.pack("<IHHHHHIIIHH", *fields) + self.name + self.extra

    def descriptor(self, crc: int) -> bytes:
        if not self.nbytes:
            return b""
        return struct.pack("<IIQQ" if self.is_zip64 else "<IIII", 0x08074B50, crc, self.nbytes, self.nbytes)

    def directory_entry(self, crc: int) -> bytes:
        extra = _zip64_extra(self.nbytes, self.nbytes, self.header_offset)
        size, offset = min(self.nbytes, _LIMIT32), min(self.header_offset, _LIMIT32)
        fields = (
            0x02014B50,
            0,
            0,
            self.flags,
            0,
            0,
            0,
            crc,
            size,
            size,
            len(self.name),
            len(extra),
            0,
            0,
            0,
            0,
            offset,
        )
        return struct.pack("<IHHHHHHIIIHHHHHII", *fields) + self.name + extra


def _zip64_extra(nbytes: int, compressed: int, header_offset: int) -> bytes:
    fields = b""
    if nbytes >= _LIMIT32:
        fields += struct.pack("<QQ", nbytes, compressed)
    if header_offset >= _LIMIT32:
        fields += struct.pack("<Q", header_offset)
    return struct.pack("<HH", 1, len(fields)) + fields if fields else b""


def _place(name: str, header_offset: int, nbytes: int, content: bytes | None = None) -> _Record:
    raw = name.encode()
    # torch builds the local field before it writes the data, so the compressed size in it is 0.
    zip64 = _zip64_extra(nbytes, 0, header_offset)
    start = header_offset + 30 + len(raw) + len(zip64) + 4
    padding = -start % _ALIGNMENT
    extra = zip64 + b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return _Record(raw, header_offset, extra, start + padding, nbytes, content)


@dataclass(frozen=True, slots=True)
class TorchLayout:
    """The layout of a file to be written: its size, and the place of each storage.

    ``storages[key]`` is (offset, nbytes) of record ``data/<key>``. All other bytes come from :meth:`frame`.
    """

    nbytes: int
    storages: tuple[tuple[int, int], ...]
    _records: tuple[_Record, ...]

    def frame(self, crcs: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of everything but the storages, whose CRC-32s by key are ``crcs``."""
        directory = []
        for record, crc in zip(self._records, self._checksums(crcs), strict=True):
            content = record.content or b""
            if record.name.endswith(b"/serialization_id"):
                content = _serialization_id(crcs)
                crc = crc32(content)
            yield record.header_offset, record.header() + content
            yield record.offset + record.nbytes, record.descriptor(crc)
            directory.append(record.directory_entry(crc))
        last = self._records[-1]
        start = last.offset + last.nbytes + last.descriptor_nbytes
        yield start, b"".join(directory) + _end_of_directory(len(directory), sum(map(len, directory)), start)

    def _checksums(self, crcs: Mapping[int, int]) -> Iterator[int]:
        key = 0
        for record in self._records:
            if record.content is None:
                yield crcs[key]
                key += 1
            else:
                yield crc32(record.content)


def _serialization_id(crcs: Mapping[int, int]) -> bytes:
    """40 digits that depend on the content. torch makes as many from a hash of names and checksums."""
    data = struct.pack(f"<{len(crcs)}I", *(crcs[key] for key in sorted(crcs)))
    return f"{crc32(data):020d}{crc32(data, 1):020d}".encode()


def _end_of_directory(count: int, nbytes: int, offset: int) -> bytes:
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 0x031E, 0x2D, 0, 0, count, count, nbytes, offset)
    locator = struct.pack("<IIQI", 0x07064B50, 0, offset + nbytes, 1)
    short = min(count, 0xFFFF)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, short, short, min(nbytes, _LIMIT32), min(offset, _LIMIT32), 0)
    return end64 + locator + end


def plan_torch_file(archive: str, tree: Any) -> TorchLayout:
    """Lay out ``tree``, whose tensors are :class:`StoredTensor` with keys 0, 1, 2 .. in the order of first appearance.

    Args:
        archive: the name of the folder inside the zip; torch uses the file's stem.
        tree: nested plain data (see :func:`streamconv.containers.pickles.writer.dumps`).
    """
    sizes: dict[int, int] = {}
    for _, tensor in leaves_of(StoredTensor, tree, "the file to be written"):
        sizes[tensor.key] = tensor.nbytes
    if list(sizes) != list(range(len(sizes))):
        raise ValueError("storage keys must count up from 0 in the order of first appearance")
    texts: list[tuple[str, bytes | None, int]] = [
        ("data.pkl", dumps(tree), 0),
        (".format_version", b"1", 0),
        (".storage_alignment", str(_ALIGNMENT).encode(), 0),
        ("byteorder", b"little", 0),
        *((f"data/{key}", None, nbytes) for key, nbytes in sizes.items()),
        ("version", b"3\n", 0),
        (".data/serialization_id", b"0" * 40, 0),
    ]
    records: list[_Record] = []
    position = 0
    for name, content, nbytes in texts:
        record = _place(f"{archive}/{name}", position, nbytes if content is None else len(content), content)
        records.append(record)
        position = record.offset + record.nbytes + record.descriptor_nbytes
    end = position + sum(record.directory_nbytes for record in records) + len(_end_of_directory(0, 0, 0))
    storages = tuple((record.offset, record.nbytes) for record in records if record.content is None)
    return TorchLayout(end, storages, tuple(records))
