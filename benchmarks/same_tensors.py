"""Whether two folders of safetensors files hold the same tensors: names, types, shapes, and every number.

    python benchmarks/same_tensors.py ONE OTHER

How tensors are spread over files does not count. Numbers are compared bit by bit, 16 MiB at a time. It reads the files
itself, without streamconv or the library safetensors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BUFFER = 1 << 24


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor's bytes are."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder; ValueError where two files have the same name."""
    found: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name in found:
                raise ValueError(f"{folder}: {name} stands in {found[name].path.name} and {path.name}")
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = Stored(path, entry["dtype"], tuple(entry["shape"]), start, end)
    return found


def differing(one: Stored, other: Stored) -> str | None:
    """How two tensors differ; None if they do not."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{one.dtype} {one.shape} and {other.dtype} {other.shape}"
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        for done in range(0, one.end - one.start, BUFFER):
            count = min(BUFFER, one.end - one.start - done)
            mine, its = (np.frombuffer(file.read(count), np.uint8) for file in (first, second))
            if min(len(mine), len(its)) < count:
                return "a file is too short"
            if not np.array_equal(mine, its):
                return f"byte {done + int(np.argmax(mine != its))} of {one.end - one.start}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; 0 if all is the same, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    options = parser.parse_args(argv)
    one, other = tensors(options.one), tensors(options.other)
    wrong = [f"{name}: only in {options.one if name in one else options.other}" for name in one.keys() ^ other.keys()]
    for name in one.keys() & other.keys():
        how = differing(one[name], other[name])
        wrong += [f"{name}: {how}"] if how else []
    if wrong or not one:
        print(*(sorted(wrong) or [f"{options.one} has no tensors"]), sep="\n")
        return 1
    print(f"{len(one)} tensors, {sum(each.end - each.start for each in one.values())} bytes, all the same")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
