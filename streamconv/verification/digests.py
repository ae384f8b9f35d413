"""Digests of whole parameters: one for each, the same whatever layout, framework and parallelism it is stored in.

A file of digests says nothing of paths, times and layouts, so it is the same file for every layout of a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import xxhash

from streamconv.containers.json_file import read_entries
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.result import Result
from streamconv.io.checksums import RecordCounts
from streamconv.io.reading import reading
from streamconv.io.refusals import refusals
from streamconv.io.whole_file import check_place
from streamconv.values.replicas import Drift

__all__ = ["ALGORITHMS", "CANONICAL", "MARK", "Digests", "TensorDigest", "digests_dict", "is_digests", "load_digests"]

CANONICAL = "canonical"
"""The kind of names that are the same for every layout."""

_SCHEMA = "streamconv.digest/1"
MARK = b'"streamconv.digest/'
"""What the first bytes of a file of digests contain."""
_STORED = "stored"
# About 200,000 parameters.
_MAX_NBYTES = 32 << 20
_MOST = 1 << 63
_SHOWN = 80


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


ALGORITHMS: Mapping[str, Callable[[], _Hash]] = {"xxh3-128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""The functions by the names that a file of digests has."""


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """The dtype, the shape and the digest of a parameter."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(slots=True, repr=False)
class Digests(Result):
    """The digests of a checkpoint's parameters by their names.

    ``names`` says whether the names are canonical or stored ones. ``vocabulary`` is the number of rows that word
    embedding and head were cut to, ``heads`` that of attention heads; both are None under stored names. The other
    fields say what the digests were taken of, and are no part of the data: ``path``, ``what`` it is, the numbers of
    records that were compared with their CRC-32, copies of parameters that differ, biases that were left out, notes.
    """

    algorithm: str
    names: str
    tensors: dict[str, TensorDigest]
    vocabulary: int | None = None
    heads: int | None = None
    path: str = ""
    what: str = ""
    nbytes: int = 0
    records: RecordCounts | None = None
    drifts: list[Drift] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """The text of a file of digests, a line for each tensor."""
        data = digests_dict(self)
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in data["tensors"].items())
        head = "".join(f"  {json.dumps(key)}: {json.dumps(data[key])},\n" for key in data if key != "tensors")
        return f'{{\n{head}  "tensors": {{\n{lines}\n  }}\n}}'

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of digests, replacing an existing one, and nothing else.

        Raises:
            DestinationError: something else is there, or there is no such folder.
            DiskSpaceError, StorageError: the system refused.
        """
        place = Path(path)
        check_place(place, MARK)
        with refusals("write the digests", place):
            place.write_text(f"{self.as_json()}\n", encoding="utf-8")


def digests_dict(found: Digests) -> dict[str, Any]:
    """The data of digests, the same for every layout."""
    return {
        "schema": _SCHEMA,
        "algorithm": found.algorithm,
        "names": found.names,
        "vocabulary": found.vocabulary,
        "heads": found.heads,
        "tensors": {
            name: {"dtype": each.dtype, "shape": list(each.shape), "digest": each.digest}
            for name, each in sorted(found.tensors.items())
        },
    }


def is_digests(path: Path) -> bool:
    """Whether a path is a file that begins as JSON does, as no checkpoint file begins."""
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises an OSError for a name that is too long
        return False
    with reading(path) as file:
        return file.read(0, 64).lstrip().startswith(b"{")


def load_digests(path: Path) -> Digests:
    """The digests in a file.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it is JSON of something else, or of digests that this release does not know.
        DamagedError: it is no JSON, or not as digests are written.
        StorageError: the system refused to read.
    """
    entries = read_entries(path, "digests", _MAX_NBYTES)
    if entries.get("schema") != _SCHEMA:
        raise UnsupportedError(
            f"JSON of the schema {str(entries.get('schema'))[:_SHOWN]}, not {_SCHEMA}",
            where=path,
            remedy="give a file that `streamconv digest -o` wrote, or a checkpoint",
        )
    algorithm, names, tensors = (entries.get(name) for name in ("algorithm", "names", "tensors"))
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise UnsupportedError(f"digests by {str(algorithm)[:_SHOWN]}; known are {known}", where=path)
    if names not in (CANONICAL, _STORED) or not isinstance(tensors, dict):
        raise DamagedError("it does not say which names it has, or has no tensors", where=path)
    length = len(ALGORITHMS[algorithm]().hexdigest())
    return Digests(
        algorithm=algorithm,
        names=names,
        tensors={name: _entry(name, entry, length, path) for name, entry in tensors.items()},
        vocabulary=_count(entries, "vocabulary", path),
        heads=_count(entries, "heads", path),
        path=str(path),
        what="digests",
    )


def _count(entries: Mapping[str, Any], name: str, path: Path) -> int | None:
    value = entries.get(name)
    if value is not None and not (_is_whole(value) and value):
        raise DamagedError(f"{name} is {str(value)[:_SHOWN]}, not a number above 0", where=path)
    return value


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _entry(name: str, entry: Any, length: int, path: Path) -> TensorDigest:
    if not isinstance(entry, dict):
        raise DamagedError(f"{name[:_SHOWN]} has no dtype, shape and digest", where=path)
    dtype, shape, digest = (entry.get(key) for key in ("dtype", "shape", "digest"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DamagedError(f"{name[:_SHOWN]} is of the type {str(dtype)[:_SHOWN]}", where=path)
    if not isinstance(shape, list) or not all(map(_is_whole, shape)):
        raise DamagedError(f"{name[:_SHOWN]} has no valid shape", where=path)
    if not isinstance(digest, str) or re.fullmatch(f"[0-9a-f]{{{length}}}", digest) is None:
        raise DamagedError(f"{name[:_SHOWN]} has a digest that is not {length} digits", where=path)
    return TensorDigest(dtype, tuple(shape), digest)
