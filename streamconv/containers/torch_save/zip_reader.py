"""Open the file that ``torch.save`` writes: a zip of one pickle and uncompressed records.

Layout, from ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc`` of PyTorch: ``<name>/data.pkl``,
``<name>/byteorder``, ``<name>/data/<key>`` for each storage, never compressed. Only the zip directory, the pickle and
the local headers are read here. The zip may also be a part of a file (``open_part``), as in a ``.distcp``.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from bisect import bisect_left
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Global
from streamconv.containers.pickles.reader import MAX_PICKLE_NBYTES, behind, load_from
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.tensors import StorageRef, TorchBuilders, storage_id
from streamconv.core.errors import DamagedError, UnsafeError, UnsupportedError
from streamconv.core.views import Storage
from streamconv.io.reading import InputFile, reading

__all__ = ["open_part", "open_torch_zip"]

_LOCAL_HEADER = struct.Struct("<IHHHHHIIIHH")
_LOCAL_MAGIC = 0x04034B50


def open_torch_zip(path: Path) -> StoredFile:
    """Read the metadata of a file that ``torch.save`` wrote; no tensor byte is read.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it is not a zip (torch before 1.6 wrote a bare pickle), or big-endian.
        DamagedError: the zip or its pickle is cut off, or a record is smaller than its tensor.
        UnsafeError: the pickle is too large or does what no checkpoint needs.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        if file.read(0, 4) != b"PK\x03\x04":
            raise UnsupportedError(
                "not a torch zip file",
                where=path,
                remedy="if torch before 1.6 wrote it, load and save it once with a newer torch",
            )
        return _Reader(file, 0, file.nbytes).open()


def open_part(file: InputFile, start: int, nbytes: int, label: str) -> StoredFile:
    """Read the metadata of a torch zip inside an open file: ``nbytes`` from ``start``.

    Its records are named by their names in the zip, with ``label`` before them.

    Raises:
        UnsupportedError: it is a zip of something else, or big-endian.
        DamagedError: the zip or its pickle is cut off, or a record is smaller than its tensor.
        UnsafeError: the pickle is too large or does what no checkpoint needs.
        StorageError: the system refused to read.
    """
    return _Reader(file, start, start + nbytes, label).open()


class _Window:
    """A part of an open file, with as much of a file's interface as ``zipfile`` uses.

    ``zipfile`` takes an ``OSError`` for the end of a file that is no zip; a :class:`StorageError` it lets pass.
    """

    def __init__(self, file: InputFile, start: int, nbytes: int) -> None:
        self.file, self.start, self.nbytes, self.position = file, start, nbytes, 0

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.nbytes}[whence]
        if base + offset < 0:
            raise ValueError(f"it would begin at byte {base + offset}")
        self.position = base + offset
        return self.position

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.nbytes - self.position)
        data = self.file.read(self.start + self.position, left if count < 0 else min(count, left))
        self.position += len(data)
        return data


def _directory(path: Path, window: Any) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(window).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        # zipfile raises the others for a version, a name or a field that no writer makes.
        raise DamagedError(f"the zip directory cannot be read: {error}", where=path) from error


class _Reader:
    """One zip: bytes ``start`` to ``end`` of an open file."""

    def __init__(self, file: InputFile, start: int, end: int, label: str = "") -> None:
        self.path, self.file, self.start, self.end, self.label = file.path, file, start, end, label
        infos = _directory(self.path, _Window(file, start, end - start))
        self.infos = {info.filename: info for info in infos}
        if len(self.infos) != len(infos):
            raise DamagedError("the zip directory lists a record twice", where=self.path)
        self.headers = sorted(info.header_offset for info in infos)
        roots = [name.removesuffix("data.pkl") for name in self.infos if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise UnsupportedError(
                f"a zip with {len(roots)} records */data.pkl, not one that torch.save wrote", where=self.path
            )
        self.root = roots[0]
        self.storages: dict[str, Storage] = {}
        # Only of tensor data: torch.serialization.skip_data records 0 there, and true checksums elsewhere.
        data = [info.CRC for info in infos if info.file_size and info.filename.startswith(f"{self.root}data/")]
        self.crc_disabled = bool(data) and not any(data)

    def open(self) -> StoredFile:
        if f"{self.root}byteorder" in self.infos and (
            self.locate("byteorder").nbytes > 16 or self.read("byteorder") != b"little"
        ):
            raise UnsupportedError("saved on a big-endian machine", where=self.path)
        pickle = self.locate("data.pkl")
        if pickle.nbytes > MAX_PICKLE_NBYTES:
            raise UnsafeError(
                f"its pickle has {pickle.nbytes} bytes; the limit is {MAX_PICKLE_NBYTES}", where=self.path
            )
        where = f"{self.path}: {self.label}" if self.label else str(self.path)
        builders = TorchBuilders(self.path, where).table()
        named: dict[Global, int] = {}
        data = self.read("data.pkl")
        state, end = load_from(data, 0, where, builders, self.persistent, named, self.end - self.start)
        locate = partial(_records, self.path, self.start, self.end, self.label)
        notes = behind(len(data) - end)
        return StoredFile(self.path, "torch zip", state, self.storages, self.crc_disabled, named, notes, locate)

    def locate(self, name: str) -> Storage:
        """The place of the bytes of a record below the root."""
        info = self.infos.get(self.root + name)
        if info is None:
            raise DamagedError(f"record {name} is missing", where=self.path)
        return self.located(info, name)

    def located(self, info: zipfile.ZipInfo, name: str) -> Storage:
        """The place of a record's bytes: the directory locates the local header, which tells where they begin."""
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise UnsupportedError(f"record {name} is compressed or encrypted", where=self.path)
        place = self.start + info.header_offset
        if not self.start <= place <= self.end - _LOCAL_HEADER.size:
            raise DamagedError(f"record {name} begins outside the file", where=self.path)
        header = self.file.read(place, _LOCAL_HEADER.size)
        magic, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        offset = place + _LOCAL_HEADER.size + name_length + extra_length
        if magic != _LOCAL_MAGIC or offset + info.file_size > self.end:
            raise DamagedError(
                f"record {name}: bytes {offset} to {offset + info.file_size} are not in a file of {self.end}",
                where=self.path,
            )
        following = bisect_left(self.headers, info.header_offset) + 1
        if following < len(self.headers) and offset + info.file_size > self.start + self.headers[following]:
            raise UnsafeError(
                f"record {name}: bytes {offset} to {offset + info.file_size} are another record's too", where=self.path
            )
        crc = None if self.crc_disabled else info.CRC
        return Storage(self.path, offset, info.file_size, self.label + name, crc, self.file.identity)

    def read(self, name: str) -> bytes:
        """A small record, checked against its CRC-32 if it has one."""
        record = self.locate(name)
        data = self.file.read(record.offset, record.nbytes)
        recorded, crc = self.infos[self.root + name].CRC, zlib.crc32(data)
        if recorded not in (0, crc):
            raise DamagedError(f"record {name}: its CRC-32 is {crc:08x}, recorded is {recorded:08x}", where=self.path)
        return data

    def persistent(self, identifier: Any) -> StorageRef:
        """A persistent id ("storage", class, key, location, numel) as a located record."""
        parsed = storage_id(identifier, self.path)
        key = parsed.key
        if parsed.rest:
            raise UnsafeError(f"the id of storage {key[:40]} has {len(parsed.rest) + 5} parts", where=self.path)
        if key not in self.storages:
            self.storages[key] = self.locate(f"data/{key}")
        storage = self.storages[key]
        if storage.nbytes < parsed.nbytes:
            raise DamagedError(
                f"record data/{key} has {storage.nbytes} bytes, its storage of {parsed.numel} elements needs "
                f"{parsed.nbytes}",
                where=self.path,
            )
        return StorageRef(storage, parsed.dtype)

    def records(self) -> tuple[Storage, ...]:
        """Every record. For those other than tensor data a recorded CRC-32 of 0 means none, as it does to torch."""
        records = []
        for info in self.infos.values():
            name = info.filename.removeprefix(self.root)
            record = self.located(info, name)
            if not name.startswith("data/"):
                record = replace(record, crc=info.CRC or None)
            records.append(record)
        return tuple(records)


def _records(path: Path, start: int, end: int, label: str) -> tuple[Storage, ...]:
    with reading(path) as file:
        return _Reader(file, start, end, label).records()
