"""Open a ``.safetensors`` file: a JSON header, followed by the tensors without gaps.

Layout, from ``safetensors/src/tensor.rs`` (``SafeTensors::read_metadata``, ``Metadata::validate``) and the format's
description in its README: 8 bytes of header length, at most 100 MB of JSON ``{name: {"dtype", "shape",
"data_offsets"}}`` that begins with ``{``, and the data, whose offsets count from the header's end. There are no
checksums.
"""

from __future__ import annotations

import json
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from streamconv.containers.stored_file import StoredFile
from streamconv.core.dtypes import DTYPES, DType
from streamconv.core.effort import LARGEST_SIZE, MOST_AXES
from streamconv.core.errors import DamagedError, UnsafeError, UnsupportedError
from streamconv.core.identity import FileIdentity
from streamconv.core.lazy import LazyTensor, View
from streamconv.core.views import Storage
from streamconv.io.reading import reading

__all__ = ["DTYPE_NAMES", "MAX_HEADER_NBYTES", "METADATA", "open_safetensors"]

METADATA = "__metadata__"
"""The header's entry for strings beside the tensors; the state has them under the same key."""
MAX_HEADER_NBYTES = 100_000_000
"""The longest header that safetensors reads, padding included, the 8 bytes of its length not."""
_FIELDS = {"dtype", "shape", "data_offsets"}
_SHOWN = 80
_FEW, _BYTES_PER_LIST = 1000, 8
DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
"""Our name for each of the header's types [safetensors/src/tensor.rs:Dtype] that this package supports."""


def open_safetensors(path: Path) -> StoredFile:
    """Read the header; no tensor byte is read.

    The state is a flat dictionary: each tensor under its whole dotted name, and under ``__metadata__`` the header's
    strings if it has any. No tensor can have that name.

    Raises:
        SourceError: there is no such file.
        DamagedError: the file is cut off, its header is not valid, or the tensors do not tile the data.
        UnsupportedError: a tensor is of a type that is not known here.
        UnsafeError: the header is longer than the format allows.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        size = file.nbytes
        length = int.from_bytes(file.read(0, 8), "little")
        if size < 8:
            raise DamagedError(f"a file of {size} bytes is too short for safetensors", where=path)
        if length > MAX_HEADER_NBYTES:
            raise UnsafeError(f"its header has {length} bytes; the limit is {MAX_HEADER_NBYTES}", where=path)
        if 8 + length > size:
            raise DamagedError(f"its header has {length} bytes, the file {size}", where=path)
        entries = _parse(file.read(8, length), path)
        identity = file.identity
    state: dict[str, Any] = {METADATA: _words(entries.pop(METADATA), path)} if METADATA in entries else {}
    data = 8 + length
    tensors = {name: _tensor(name, entry, data, identity) for name, entry in entries.items()}
    storages = {name: view.storage for name, (view, _) in tensors.items()}
    _check_tiling(list(storages.values()), data, size, path)
    state |= {name: LazyTensor.stored(view, shape) for name, (view, shape) in tensors.items()}
    return StoredFile(path, "safetensors", state, storages)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name is there twice")
    return entries


def _parse(header: bytes, path: Path) -> dict[str, Any]:
    try:
        if header[:1] != b"{":
            raise ValueError("it does not begin with {")
        # A tensor's entry is of 50 bytes and more, and has three of these; each takes a hundred bytes when it is read.
        if header.count(b"[") + header.count(b"{") > _FEW + len(header) // _BYTES_PER_LIST:
            raise ValueError("more lists and tables than its tensors can have")
        entries = json.loads(header.decode(), object_pairs_hook=_once)
        # JSON may escape half of a surrogate pair, which is no text and cannot be printed.
        "".join(entries).encode()
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"its header is not one of safetensors: {str(error)[:_SHOWN]}", where=path) from error
    parsed: dict[str, Any] = entries
    return parsed


def _words(entry: Any, path: Path) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(word, str) for word in entry.values()):
        raise DamagedError(f"its {METADATA} is not a table of words", where=path)
    return entry


def _is_counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_AXES
        and all(type(number) is int and 0 <= number <= LARGEST_SIZE for number in value)
    )


def _tensor(name: str, entry: Any, data: int, identity: FileIdentity) -> tuple[View, list[int]]:
    """One entry of the header as a view of its bytes, and its shape."""
    path = identity.path
    if not isinstance(entry, dict) or entry.keys() != _FIELDS or not isinstance(entry["dtype"], str):
        raise DamagedError(f"{name[:_SHOWN]} is not described by dtype, shape and data_offsets", where=path)
    dtype = _dtype(name, entry["dtype"], path)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if (
        not _is_counts(shape)
        or not _is_counts(offsets)
        or len(offsets) != 2
        or prod(filter(None, shape)) > LARGEST_SIZE
    ):
        raise DamagedError(f"{name[:_SHOWN]} has no valid shape and data_offsets", where=path)
    start, end = offsets
    if end - start != prod(shape) * dtype.itemsize:
        raise DamagedError(
            f"{name[:_SHOWN]}: {dtype} of shape {str(shape)[:_SHOWN]} does not fill bytes {start} to {end}", where=path
        )
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = Storage(path, data + start, end - start, name, None, identity)
    return View(storage, dtype, 0, tuple(strides)), shape


def _dtype(name: str, word: str, path: Path) -> DType:
    if word not in DTYPE_NAMES:
        raise UnsupportedError(f"{name[:_SHOWN]} is of the type {word[:_SHOWN]}", where=path)
    return DTYPES[DTYPE_NAMES[word]]


def _check_tiling(storages: list[Storage], data: int, size: int, path: Path) -> None:
    """Refuse a hole, an overlap, and bytes that are missing or left over at the end."""
    placed = sorted(storages, key=lambda s: (s.offset, s.nbytes))
    # Two empty storages mark the ends of the data: the header's end and the file's.
    fences = [Storage(path, data, 0, "the header"), *placed, Storage(path, size, 0, "the file's end")]
    for left, right in pairwise(fences):
        end = left.offset + left.nbytes
        if end != right.offset:
            what = "overlap" if end > right.offset else "have a hole between them"
            raise DamagedError(
                f"{left.name[:_SHOWN]} (to byte {end}) and {right.name[:_SHOWN]} (from {right.offset}) {what}",
                where=path,
            )
