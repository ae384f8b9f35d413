"""What no side of a comparison has taken: tensors in a folder's other files, and files that cannot be opened."""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from streamconv.containers.open_any import CHECKPOINT_SUFFIXES, checkpoint_files, open_any
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor, Storage, View

__all__ = ["NotCompared", "rest_of", "unused_files"]


@dataclass(frozen=True, slots=True)
class NotCompared:
    """Something that was not compared, and why. ``exit_code`` is 0 if the verdict does not speak of it, as one on
    parameters does not speak of an optimizer's state.
    """

    name: str
    why: str
    exit_code: int


def rest_of(
    folder: Path, paths: Iterable[Path], taken: Iterable[LazyTensor]
) -> tuple[dict[str, LazyTensor], list[NotCompared]]:
    """The tensors in some files that have bytes which no tensor of ``taken`` has, and those without elements.

    A file of a kind that is not opened is one tensor of bytes.

    Args:
        folder: what the names of files are relative to.
        paths: the files.
        taken: tensors that need not be looked at again.

    Returns:
        the tensors by ``file:name``, and the files that are broken.

    Raises:
        StorageError: the system refused to read.
    """
    known = _Known(taken)
    rest: dict[str, LazyTensor] = {}
    broken: list[NotCompared] = []
    for path in paths:
        name = os.path.relpath(path, folder)
        try:
            stored = _stored(path, name)
        except DamagedError as error:
            broken.append(NotCompared(name, error.what, error.exit_code))
            continue
        rest |= {key: tensor for key, tensor in stored.items() if not (tensor.numel and known.has(tensor))}
    return rest, broken


def _stored(path: Path, name: str) -> dict[str, LazyTensor]:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        return {name: _bytes_of(path)}
    try:
        return {f"{name}:{key}": tensor for key, tensor in open_any(path).tensors().items()}
    except UnsupportedError:
        return {name: _bytes_of(path)}


def unused_files(folder: Path, taken: Iterable[LazyTensor]) -> list[str]:
    """The checkpoint files below a folder that no tensor of ``taken`` is read from."""
    used = _Known(taken).ranges
    return [str(path.relative_to(folder)) for path in checkpoint_files(folder) if os.path.realpath(path) not in used]


def _bytes_of(path: Path) -> LazyTensor:
    nbytes = path.stat().st_size
    return LazyTensor.stored(View(Storage(path, 0, nbytes, path.name), DTYPES["uint8"], 0, (1,)), (nbytes,))


class _Known:
    """The bytes of some tensors: for each file, by its real path, the first and the last byte of each range."""

    def __init__(self, tensors: Iterable[LazyTensor]) -> None:
        self._real = cache(os.path.realpath)
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for tensor in tensors:
            for path, first, last in self._ranges(tensor):
                found[path].append((first, last))
        self.ranges = {path: _joined(ranges) for path, ranges in found.items()}

    def has(self, tensor: LazyTensor) -> bool:
        """Whether all bytes of a tensor are known."""
        return all(self._has(path, first, last) for path, first, last in self._ranges(tensor))

    def _has(self, path: str, first: int, last: int) -> bool:
        ranges = self.ranges.get(path, [])
        place = bisect_right(ranges, (first, sys.maxsize)) - 1
        return place >= 0 and last <= ranges[place][1]

    def _ranges(self, tensor: LazyTensor) -> Iterator[tuple[str, int, int]]:
        for piece in tensor.pieces:
            for view in piece.views:
                first, nbytes = view.span(piece.shape)
                start = view.storage.offset + first
                yield self._real(view.storage.path), start, start + nbytes


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined
