"""Write the pickle of a state dict, instruction for instruction as ``torch.save`` writes it, without torch.

Protocol 2, with the instructions and the memo of CPython's own pickler (``Modules/_pickle.c``). A tensor is what
``torch.Tensor.__reduce_ex__`` returns: ``torch._utils._rebuild_tensor_v2`` on a persistent id for its storage. So
torch's serialiser is the oracle for this one, byte by byte.
"""

from __future__ import annotations

import argparse
import re
import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.core.dtypes import DTYPES, DType
from streamconv.core.errors import UnsupportedError

__all__ = ["Call", "StoredTensor", "contiguous_strides", "dumps", "int_bytes", "is_plain", "text_bytes"]

_BATCH = 1000
_DEEPEST = 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_ORDERED_DICT = b"ccollections\nOrderedDict\n"
_NAMESPACE = b"cargparse\nNamespace\n"
_TUPLE = {1: b"\x85", 2: b"\x86", 3: b"\x87"}
# The only calls that are written: torch's shapes, and an enum that bigscience's loader compares.
_CALLED = frozenset({Global("torch", "Size"), Global("megatron.enums", "PositionEmbeddingType")})


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a class with plain arguments: ``torch.Size((2, 3))``, or the member of an enum by its value.

    ``torch.Size.__reduce__`` and ``enum.Enum.__reduce_ex__`` return such calls.
    """

    cls: Global
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A contiguous tensor at the start of the storage with index ``key`` in the file that is written."""

    key: int
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements, as ``torch.empty(shape).stride()`` returns them."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_plain(value: Any) -> bool:
    """Whether a value is plain data that any reader can open: numbers, strings, torch dtypes, and lists of them."""
    return _is_plain(value, 0, set())


def _is_plain(value: Any, depth: int, known: set[int]) -> bool:
    if isinstance(value, Global):
        return value.module == "torch" and value.name in DTYPES
    if not isinstance(value, dict | list | tuple):
        return value is None or isinstance(value, bool | int | float | str)
    # A container may occur in many places: once it is known to be plain, it is not checked again.
    if id(value) in known:
        return True
    if depth >= _DEEPEST or (isinstance(value, dict) and not all(isinstance(key, str | int) for key in value)):
        return False
    if not all(_is_plain(item, depth + 1, known) for item in (value.values() if isinstance(value, dict) else value)):
        return False
    known.add(id(value))
    return True


def dumps(tree: Any) -> bytes:
    """Pickle nested dicts, lists and tuples of plain data, namespaces, :class:`StoredTensor` and :class:`Call`.

    Raises:
        TypeError: the tree holds anything else.
        UnsupportedError: a tensor is of a type that torch has no storage class for.
    """
    writer = _Writer()
    writer.save(tree)
    return b"\x80\x02%b." % bytes(writer.out)


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        # As in CPython, the keys are identities; so the object is kept alive beside its index.
        self.memo: dict[Any, tuple[int, Any]] = {}
        self.memo_length = 0
        self.storage_keys: dict[int, str] = {}

    def emit(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.out += chunk

    def memoize(self, key: Any, value: Any) -> None:
        self.memo[key] = (self.memo_length, value)
        self.count()

    def count(self) -> None:
        """Use up an index of the memo, for an object that is never recalled."""
        index = self.memo_length
        self.memo_length = index + 1
        self.out += b"q%c" % index if index < 256 else b"r" + struct.pack("<I", index)

    def recalled(self, key: Any) -> bool:
        if key not in self.memo:
            return False
        index = self.memo[key][0]
        self.out += b"h%c" % index if index < 256 else b"j" + struct.pack("<I", index)
        return True

    def save(self, value: Any) -> None:
        if isinstance(value, str):
            self.save_text(value)
        elif value is None:
            self.emit(b"N")
        elif isinstance(value, bool):
            self.emit(b"\x88" if value else b"\x89")
        elif isinstance(value, int):
            self.emit(int_bytes(value))
        elif isinstance(value, float):
            self.emit(b"G" + struct.pack(">d", value))
        elif isinstance(value, Global):
            self.save_global(value)
        elif isinstance(value, tuple) and not value:
            self.emit(b")")
        elif not self.recalled(id(value)):
            self.save_object(value)

    def save_text(self, value: str) -> None:
        if not self.recalled(id(value)):
            self.emit(text_bytes(value))
            self.memoize(id(value), value)

    def save_object(self, value: Any) -> None:
        if isinstance(value, tuple):
            self.save_tuple(value)
        elif isinstance(value, list):
            self.emit(b"]")
            self.memoize(id(value), value)
            self.save_batches(((item,) for item in value), b"a", b"e", len(value) == 1)
        elif isinstance(value, OrderedDict):
            self.save_name(_ORDERED_DICT)
            self.emit(b")R")
            self.memoize(id(value), value)
            self.save_batches(value.items(), b"s", b"u")
        elif isinstance(value, dict):
            self.emit(b"}")
            self.memoize(id(value), value)
            self.save_batches(value.items(), b"s", b"u", len(value) == 1)
            if value and len(value) % _BATCH == 0:
                self.emit(b"(u")  # CPython begins another batch after each full one
        elif isinstance(value, argparse.Namespace):
            self.save_namespace(value)
        elif isinstance(value, StoredTensor):
            self.save_tensor(value)
        elif isinstance(value, Call):
            self.save_call(value)
        else:
            raise TypeError(f"cannot write a {type(value).__name__}: not plain data")

    def save_global(self, value: Global) -> None:
        # The names are lines of the pickle: after a line break in one, the rest would be instructions.
        if not (_NAME.fullmatch(value.module) and _NAME.fullmatch(value.name)):
            raise TypeError(f"cannot write a global named {value.module!r} {value.name!r}")
        self.save_name(f"c{value.module}\n{value.name}\n".encode())

    def save_call(self, value: Call) -> None:
        if value.cls not in _CALLED:
            raise TypeError(f"cannot write a call of {value.cls.module}.{value.cls.name}")
        self.save_global(value.cls)
        self.save(value.args)
        self.emit(b"R")
        self.memoize(id(value), value)

    def save_name(self, instruction: bytes) -> None:
        if not self.recalled(instruction):
            self.emit(instruction)
            self.memoize(instruction, None)

    def save_tuple(self, value: tuple[Any, ...]) -> None:
        if len(value) > 3:
            self.emit(b"(")
        for item in value:
            self.save(item)
        self.emit(_TUPLE.get(len(value), b"t"))
        self.memoize(id(value), value)

    def save_batches(
        self, rows: Iterable[tuple[Any, ...]], single: bytes, many: bytes, alone: bool | None = None
    ) -> None:
        """Save items in batches; ``alone``: whether there is one item in all, None if CPython decides by batch."""
        iterator = iter(rows)
        while batch := list(islice(iterator, _BATCH)):
            is_single = len(batch) == 1 if alone is None else alone
            if not is_single:
                self.emit(b"(")
            for row in batch:
                for item in row:
                    self.save(item)
            self.emit(single if is_single else many)

    def save_namespace(self, value: argparse.Namespace) -> None:
        self.save_name(_NAMESPACE)
        self.emit(b")\x81")
        self.memoize(id(value), value)
        self.save(vars(value))
        self.emit(b"b")

    def save_tensor(self, value: StoredTensor) -> None:
        if value.dtype.storage is None:
            raise UnsupportedError(
                f"{value.dtype}: torch's files are not written with tensors of this type",
                remedy="cast them, as --dtype bf16",
            )
        self.save_name(_REBUILD)
        self.emit(b"((")
        self.save_text("storage")
        self.save_name(f"ctorch\n{value.dtype.storage}\n".encode())
        self.save_text(self.storage_keys.setdefault(value.key, str(value.key)))
        self.save_text("cpu")
        self.emit(int_bytes(value.nbytes // value.dtype.itemsize), b"t")
        self.count()
        self.emit(b"QK\x00")
        self.save_sizes(value.shape)
        self.save_sizes(contiguous_strides(value.shape))
        self.emit(b"\x89")
        self.save_name(_ORDERED_DICT)
        self.emit(b")R")
        self.count()
        self.emit(b"t")
        self.count()
        self.emit(b"R")
        self.memoize(id(value), value)

    def save_sizes(self, sizes: tuple[int, ...]) -> None:
        """Save a tuple of integers that occurs only here."""
        if not sizes:
            self.emit(b")")
            return
        self.emit(b"(" if len(sizes) > 3 else b"", *map(int_bytes, sizes), _TUPLE.get(len(sizes), b"t"))
        self.count()


def text_bytes(value: str) -> bytes:
    """The instruction that makes a string, as CPython's pickler writes it with protocol 2."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def int_bytes(value: int) -> bytes:
    """The instruction that makes an integer, as CPython's pickler writes it with protocol 2."""
    if 0 <= value < 1 << 8:
        return b"K%c" % value
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if value < 0 and raw[-1] == 0xFF and raw[-2] & 0x80:
        raw = raw[:-1]
    return (b"\x8a" + struct.pack("<B", len(raw)) if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw))) + raw
