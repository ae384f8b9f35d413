"""Open the file that ``torch.save`` writes: a zip of stored records around one pickle.

Layout, from ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc`` of PyTorch: ``<name>/data.pkl``,
``<name>/byteorder``, ``<name>/data/<key>`` for each storage, never compressed. A tensor in the pickle is a call of
``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ..)`` whose storage is a persistent id ``("storage",
class, key, location, numel)``. Only the zip directory, the pickle and the local headers are read here.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Any

from streamconv.dtypes import DType, dtype_from_storage, dtype_named
from streamconv.errors import DamagedError, SourceError, StorageError, UnsafeError, UnsupportedError
from streamconv.files import safe_pickle
from streamconv.files.pickle_machine import Global, checked_key
from streamconv.lazy import LazyTensor, Storage, View

__all__ = ["TorchFile", "is_torch_zip", "open_torch_zip"]

_LOCAL_HEADER = struct.Struct("<IHHHHHIIIHH")
_LOCAL_MAGIC = 0x04034B50


@dataclass(frozen=True, slots=True)
class TorchFile:
    """An opened file: its plain state with :class:`LazyTensor` leaves, and its storages by key.

    ``crc_disabled`` says that the writer recorded no checksum of any storage
    (``torch.serialization.set_crc32_options(False)``).
    """

    path: Path
    state: Any
    storages: dict[str, Storage]
    crc_disabled: bool

    def tensors(self) -> dict[str, LazyTensor]:
        """Every tensor in the file by the dotted path of its keys.

        Raises:
            DamagedError: two tensors have the same dotted path.
        """
        found: dict[str, LazyTensor] = {}
        for path, tensor in safe_pickle.leaves_of(LazyTensor, self.state, str(self.path)):
            name = ".".join(map(str, path))
            if name in found:
                raise DamagedError(f"two tensors are named {name}", where=self.path)
            found[name] = tensor
        return found


@dataclass(slots=True, eq=False)
class _StorageRef:
    storage: Storage
    dtype: DType | None


def is_torch_zip(path: Path) -> bool:
    """Whether the file begins as a zip does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def open_torch_zip(path: Path) -> TorchFile:
    """Read the metadata of a file that ``torch.save`` wrote; no tensor byte is read.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it is not a zip (torch before 1.6 wrote a bare pickle), or big-endian.
        DamagedError: the zip or its pickle is cut off, or a record is smaller than its tensor.
        UnsafeError: the pickle is out of bounds in what it asks for.
        StorageError: the system refused to read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SourceError("not a file", where=path)
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise UnsupportedError(
                    "not a torch zip file",
                    where=path,
                    remedy="if torch before 1.6 wrote it, load and save it once with a newer torch",
                )
            return _Reader(path, file).open()
    except FileNotFoundError as error:
        raise SourceError("no such file", where=path) from error
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror}", where=path) from error


def _directory(path: Path, file: Any) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        # zipfile raises the others for a version, a name or a field that no writer makes.
        raise DamagedError(f"the zip directory cannot be read: {error}", where=path) from error


class _Reader:
    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.where, self.descriptor = path, str(path), file.fileno()
        self.size = os.fstat(self.descriptor).st_size
        infos = _directory(path, file)
        self.infos = {info.filename: info for info in infos}
        if len(self.infos) != len(infos):
            raise DamagedError("the zip directory lists a record twice", where=path)
        roots = [name.removesuffix("data.pkl") for name in self.infos if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise UnsupportedError(
                f"a zip with {len(roots)} records */data.pkl, not one that torch.save wrote", where=path
            )
        self.root = roots[0]
        self.storages: dict[str, Storage] = {}
        # Of tensor data only: torch.serialization.skip_data leaves 0 there and true checksums elsewhere.
        data = [info.CRC for info in infos if info.file_size and info.filename.startswith(f"{self.root}data/")]
        self.crc_disabled = bool(data) and not any(data)

    def open(self) -> TorchFile:
        if f"{self.root}byteorder" in self.infos and (
            self.locate("byteorder").nbytes > 16 or self.read("byteorder") != b"little"
        ):
            raise UnsupportedError("saved on a big-endian machine", where=self.path)
        pickle = self.locate("data.pkl")
        if pickle.nbytes > safe_pickle.MAX_PICKLE_NBYTES:
            raise UnsafeError(
                f"its pickle has {pickle.nbytes} bytes; the limit is {safe_pickle.MAX_PICKLE_NBYTES}", where=self.path
            )
        builders: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self.ordered,
            "torch.Size": lambda sizes: tuple(sizes),
            "torch._utils._rebuild_tensor_v2": self.rebuild,
            "torch._utils._rebuild_tensor_v3": lambda s, o, n, t, g, h, dtype, *m: self.rebuild(
                s, o, n, t, g, h, *m, dtype=dtype
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        }
        # A tensor with Python attributes is wrapped: the function, the class, its arguments, the attributes.
        builders["torch._tensor._rebuild_from_type_v2"] = lambda function, _, args, __: builders[str(function)](*args)
        state = safe_pickle.loads(self.read("data.pkl"), self.where, builders, self.persistent)
        return TorchFile(self.path, state, self.storages, self.crc_disabled)

    def locate(self, name: str) -> Storage:
        """Where a record's bytes are: the zip directory has the local header's place, the header has their start."""
        info = self.infos.get(self.root + name)
        if info is None:
            raise DamagedError(f"record {name} is missing", where=self.path)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise UnsupportedError(f"record {name} is compressed or encrypted", where=self.path)
        if not 0 <= info.header_offset <= self.size - _LOCAL_HEADER.size:
            raise DamagedError(f"record {name} begins outside the file", where=self.path)
        header = os.pread(self.descriptor, _LOCAL_HEADER.size, info.header_offset)
        magic, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if magic != _LOCAL_MAGIC or offset + info.file_size > self.size:
            raise DamagedError(
                f"record {name}: bytes {offset} to {offset + info.file_size} are not in a file of {self.size}",
                where=self.path,
            )
        return Storage(self.path, offset, info.file_size, name, None if self.crc_disabled else info.CRC)

    def read(self, name: str) -> bytes:
        """A small record, checked against its CRC-32 if it has one."""
        record = self.locate(name)
        data = os.pread(self.descriptor, record.nbytes, record.offset)
        recorded, found = self.infos[self.root + name].CRC, zlib.crc32(data)
        if recorded not in (0, found):
            raise DamagedError(f"record {name}: its CRC-32 is {found:08x}, recorded is {recorded:08x}", where=self.path)
        return data

    def ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        """What ``OrderedDict(pairs)`` stands for."""
        return {key if type(key) is str else checked_key(key, self.where): value for key, value in pairs}

    def persistent(self, identifier: Any) -> _StorageRef:
        """A persistent id ("storage", class, key, location, numel) as a located record."""
        tag, cls, key, _, numel = identifier
        known = isinstance(tag, str) and tag == "storage" and isinstance(cls, Global) and isinstance(numel, int)
        if not known or not isinstance(key, str):
            raise UnsafeError("pickle refers to data outside itself that is no storage", where=self.path)
        dtype = dtype_from_storage(cls.name)
        if dtype is None and cls.name != "UntypedStorage":
            raise UnsupportedError(f"storage of class {cls}", where=self.path)
        if key not in self.storages:
            self.storages[key] = self.locate(f"data/{key}")
        storage = self.storages[key]
        needed = numel * (dtype.itemsize if dtype else 1)
        if storage.nbytes < needed or numel < 0:
            raise DamagedError(
                f"record data/{key} has {storage.nbytes} bytes, its storage of {numel} elements needs {needed}",
                where=self.path,
            )
        return _StorageRef(storage, dtype)

    def rebuild(
        self,
        ref: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
        *,
        dtype: Any = None,
    ) -> LazyTensor:
        """A tensor as a view of its storage, checked to lie inside it."""
        if not isinstance(ref, _StorageRef):
            raise UnsafeError("a tensor without a storage", where=self.path)
        kind = dtype_named(dtype.name) if isinstance(dtype, Global) else ref.dtype
        if kind is None:
            raise UnsupportedError(f"a tensor of an unknown dtype in {ref.storage.name}", where=self.path)
        if metadata:
            raise UnsupportedError(
                f"a tensor in {ref.storage.name} is marked as conjugated or negated: its bytes are not its values",
                where=self.path,
                remedy="save it again after .resolve_conj().resolve_neg()",
            )
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or set(map(type, numbers)) != {int} or min(numbers) < 0:
            raise DamagedError(f"a tensor in {ref.storage.name} has no valid offset, size and stride", where=self.path)
        last = offset + sum(map(mul, size, stride)) - sum(stride) + 1
        if 0 not in size and last * kind.itemsize > ref.storage.nbytes:
            raise DamagedError(
                f"tensor of size {tuple(size)} at {offset} ends behind its record {ref.storage.name} "
                f"of {ref.storage.nbytes} bytes",
                where=self.path,
            )
        return LazyTensor.stored(View(ref.storage, kind, offset, tuple(stride)), size)
