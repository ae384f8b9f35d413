"""Open a file of ``torch.save`` before 1.6, or with ``_use_new_zipfile_serialization=False``.

Layout, from ``torch/serialization.py``: ``_legacy_save`` and ``_legacy_load`` of PyTorch: five pickles one after the
other (a magic number, the protocol version 1001, a description of the machine, the object, the list of storage keys),
and then for each key its number of elements as 64 bits and its bytes. There are no checksums. A storage's place
follows from the sizes of those before it, and the object's pickle contains their types: so that pickle is read twice.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Global
from streamconv.containers.pickles.reader import MAX_PICKLE_NBYTES, load_from
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.tensors import StorageId, StorageRef, TorchBuilders, storage_id
from streamconv.core.errors import DamagedError, UnsafeError, UnsupportedError
from streamconv.core.text import shown
from streamconv.core.views import Storage
from streamconv.io.reading import InputFile, reading

__all__ = ["is_torch_old", "open_torch_old"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_HEAD_NBYTES = 64
_BEGINNING = 256 << 10
_COUNT = struct.Struct("<q")


def is_torch_old(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (64 bytes are enough) begins with torch's magic number.

    A file that ends inside that number counts too, as a damaged one.
    """
    binary = _MAGIC.to_bytes(10, "little")
    cut_off = 3 < len(head) < 15 and (b"\x80\x02\x8a\x0a" + binary).startswith(head)
    return cut_off or binary in head[:_HEAD_NBYTES] or str(_MAGIC).encode() in head[:_HEAD_NBYTES]


def open_torch_old(path: Path) -> StoredFile:
    """Read the metadata of a file that torch before 1.6 wrote; no tensor byte is read.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it has no such magic number, is of another version, or of a big-endian machine.
        DamagedError: it is cut off, or a storage is not what its pickle says.
        UnsafeError: a pickle is too large or does what no checkpoint needs, or does not end in the first 64 MiB.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        if not is_torch_old(file.read(0, _HEAD_NBYTES)):
            raise UnsupportedError("not a file of torch before 1.6", where=path)
        return _opened(file)


def _opened(file: InputFile) -> StoredFile:
    """The file, read by as much of its beginning as holds the pickles: nothing says where they end."""
    nbytes = _BEGINNING
    while True:
        try:
            return _Reader(file).open(file.read(0, nbytes))
        except UnsafeError:
            raise
        except DamagedError:
            if nbytes >= min(file.nbytes, MAX_PICKLE_NBYTES):
                raise
        nbytes = min(8 * nbytes, MAX_PICKLE_NBYTES)


class _Reader:
    def __init__(self, file: InputFile) -> None:
        self.file, self.path, self.where = file, file.path, str(file.path)
        self.ids: dict[str, StorageId] = {}
        self.storages: dict[str, Storage] = {}
        self.views: dict[str, StorageRef] = {}

    def open(self, head: bytes) -> StoredFile:
        start = self.check_preamble(head)
        _, end = load_from(head, start, self.where, None, self.note)
        keys, end = load_from(head, end, self.where)
        end = self.place(keys, end)
        named: dict[Global, int] = {}
        builders = TorchBuilders(self.path, self.where).table()
        state, _ = load_from(head, start, self.where, builders, self.persistent, named, self.file.nbytes)
        left = self.file.nbytes - end
        notes = (f"{left} bytes behind the last tensor are not read",) if left else ()
        return StoredFile(self.path, "torch before 1.6", state, self.storages, globals=named, notes=notes)

    def check_preamble(self, head: bytes) -> int:
        """Check the pickles before the object's; returns where that one begins."""
        magic, end = load_from(head, 0, self.where)
        protocol, end = load_from(head, end, self.where)
        if magic != _MAGIC or protocol != _PROTOCOL:
            raise UnsupportedError(
                f"torch's serialization protocol {shown(protocol)}; {_PROTOCOL} is known", where=self.path
            )
        machine, end = load_from(head, end, self.where)
        if not isinstance(machine, dict) or not isinstance(machine.get("little_endian"), bool):
            raise DamagedError("the description of the machine that saved it is no such thing", where=self.path)
        if not machine["little_endian"]:
            raise UnsupportedError("saved on a big-endian machine", where=self.path)
        return end

    def place(self, keys: Any, position: int) -> int:
        """Locate the storages, the first at ``position``; returns where the last ends."""
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise DamagedError("the list of storage keys is no list of names", where=self.path)
        if len(set(keys)) != len(keys) or set(keys) != set(self.ids):
            raise DamagedError(
                f"its pickle uses {len(self.ids)} storages, its list has {len(keys)}, and they are not the same",
                where=self.path,
            )
        for key in keys:
            count = self.file.read(position, _COUNT.size)
            if len(count) < _COUNT.size:
                raise DamagedError(
                    f"the file of {self.file.nbytes} bytes ends before storage {key[:40]}", where=self.path
                )
            (numel,), expected = _COUNT.unpack(count), self.ids[key]
            # As caffe2's readers do in torch/csrc/serialization.cpp:THPStorage_readFileRaw.
            if numel != expected.numel:
                raise DamagedError(
                    f"storage {key[:40]} has {numel} elements, its pickle says {expected.numel}", where=self.path
                )
            offset, position = position + _COUNT.size, position + _COUNT.size + expected.nbytes
            if position > self.file.nbytes:
                raise DamagedError(
                    f"storage {key[:40]}: bytes {offset} to {position} are not in a file of {self.file.nbytes}",
                    where=self.path,
                )
            self.storages[key] = Storage(self.path, offset, expected.nbytes, key, None, self.file.identity)
        return position

    def note(self, identifier: Any) -> Global | None:
        """Record a storage on the first pass through the pickle; its type is that of its first use."""
        cls = self.class_in(identifier)
        if cls is None:
            whole = storage_id(identifier, self.path)
            self.ids.setdefault(whole.key, whole)
        return cls

    def class_in(self, identifier: Any) -> Global | None:
        """The class in the id ("module", class, file, source) of a model saved whole; None for any other id."""
        if not isinstance(identifier, tuple) or not isinstance(identifier[0], str) or identifier[0] != "module":
            return None
        cls = identifier[1]
        if not isinstance(cls, Global):
            raise UnsafeError("pickle refers to a class outside itself that is none", where=self.path)
        return cls

    def persistent(self, identifier: Any) -> Global | StorageRef:
        """A storage, or a part of one: ("storage", class, key, location, numel, None or (key, offset, numel))."""
        cls = self.class_in(identifier)
        if cls is not None:
            return cls
        whole = storage_id(identifier, self.path)
        storage = self.storages[whole.key]
        if whole.nbytes > storage.nbytes:
            raise DamagedError(
                f"storage {whole.key[:40]} has {storage.nbytes} bytes, {whole.numel} elements need {whole.nbytes}",
                where=self.path,
            )
        view = whole.rest[0] if whole.rest else None
        return StorageRef(storage, whole.dtype) if view is None else self.view_of(storage, whole, view)

    def view_of(self, storage: Storage, whole: StorageId, view: Any) -> StorageRef:
        """A part of a storage, as releases before 0.4 recorded it; later ones always write None."""
        key, offset, numel = view
        if not isinstance(key, str) or type(offset) is not int or type(numel) is not int:
            raise DamagedError(f"a part of storage {whole.key[:40]} has no key, offset and size", where=self.path)
        if key not in self.views:
            first, nbytes = offset * whole.itemsize, numel * whole.itemsize
            if min(first, nbytes) < 0 or first + nbytes > storage.nbytes:
                raise DamagedError(
                    f"{numel} elements from {offset} are not in storage {whole.key[:40]} of {storage.nbytes} bytes",
                    where=self.path,
                )
            part = replace(storage, offset=storage.offset + first, nbytes=nbytes, name=key)
            self.views[key] = StorageRef(part, whole.dtype)
        return self.views[key]
