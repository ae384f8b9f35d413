"""Hold what we read of a checkpoint's files against what their formats' own readers read of them.

Those readers map the files, and pages are given back when they have been looked at; a chunk of ``torch.distributed``
is read whole, if the budget has room for it. What a reader refuses has not been compared, and never counts as agreed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from streamconv.containers.open_any import checkpoint_files, open_any
from streamconv.containers.reference.open import check_torch, open_reference
from streamconv.containers.reference.torch_tensors import ReferenceFile
from streamconv.core.errors import StorageError, StreamconvError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.result import Result
from streamconv.memory.budget import format_bytes, parse_budget
from streamconv.values.distance import bits_differ
from streamconv.values.options import ReadingOptions
from streamconv.values.reader import TensorReader, parts
from streamconv.values.sweep import SweepSettings, fit_sweep

if TYPE_CHECKING:
    import torch

__all__ = [
    "ALL",
    "FileCheck",
    "NotAgreed",
    "ReferenceCheck",
    "ReferenceRoom",
    "TensorVerdict",
    "check_reference",
    "fit_reference",
]

ALL = "all"
"""The mode in which every element of every tensor is compared."""

DISTRIBUTED = ".distcp"
NDArray = npt.NDArray[Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class NotAgreed:
    """A file, or a tensor of one (``name`` is None for the file), that was not found to be the same, and why."""

    file: str
    name: str | None
    why: str


@dataclass(slots=True, repr=False)
class ReferenceCheck(Result):
    """What the formats' own readers said.

    ``mode`` is ``sample`` or ``all``. ``files`` counts the opened files by the reader's name, ``tensors`` what is in
    them, ``compared`` the tensors that were compared, ``nbytes`` their bytes that were. ``different`` are tensors that
    both read, and not alike; ``refused`` are files and tensors that one of them does not read.
    """

    path: str
    mode: str
    files: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    compared: int = 0
    nbytes: int = 0
    different: list[NotAgreed] = field(default_factory=list)
    refused: list[NotAgreed] = field(default_factory=list)


class ReferenceRoom(NamedTuple):
    """How values are read, and the bytes that a tensor may take in memory."""

    settings: SweepSettings
    nbytes: int


def fit_reference(dst: Path, reading: ReadingOptions) -> ReferenceRoom:
    """Fit the check of a file or a folder into a budget, with torch in memory.

    Raises:
        UnsupportedError: this release of torch is not safe.
        MemoryBudgetError: the budget is too small.
    """
    files = checkpoint_files(dst) if dst.is_dir() else [dst]
    check_torch(distributed=any(path.suffix == DISTRIBUTED for path in files))
    # One side for our own reader, one for copies of what torch reads.
    settings = fit_sweep(reading, sides=2)
    used = psutil.Process().memory_info().rss + 8 * settings.block
    return ReferenceRoom(settings, max(0, parse_budget(reading.max_ram).nbytes - used))


def check_reference(
    folder: Path, names: Sequence[str], mode: str, room: ReferenceRoom, progress: Progress | None = None
) -> ReferenceCheck:
    """Open files with their formats' own readers, and compare tensors with what we read.

    Args:
        folder: the folder that the files are in.
        names: the files' paths below it.
        mode: ``sample`` compares the beginning and the end of a few tensors of each file, ``all`` everything.
        room: from :func:`fit_reference`.
        progress: called with (bytes done, bytes in all).

    Raises:
        StorageError: the system refused to read.
    """
    result = ReferenceCheck(str(folder), mode)
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    done, total = 0, sum(sizes.values())
    with closing(TensorReader(room.settings.io, room.settings.block)) as reader:
        check = FileCheck(result, reader, room, lambda nbytes: progress and progress(min(done + nbytes, total), total))
        for name, path in paths.items():
            check.file(name, path)
            done += sizes[name]
            check.progress(0)
    return result


class TensorVerdict(NamedTuple):
    """Why a tensor was not compared, or how the two readers differ; None and None if they agree."""

    refused: str | None = None
    different: str | None = None


class FileCheck:
    """Compares one file after the other, and enters what it finds in the result."""

    def __init__(
        self, result: ReferenceCheck, reader: TensorReader, room: ReferenceRoom, progress: Callable[[int], object]
    ) -> None:
        self.result, self.reader, self.room, self.progress = result, reader, room, progress
        self.before = 0

    def file(self, name: str, path: Path) -> None:
        """Compare a file."""
        try:
            ours = open_any(path)
            tensors = ours.tensors()
            theirs = open_reference(ours)
        except StorageError:
            raise
        except StreamconvError as error:
            self.result.refused.append(NotAgreed(name, None, error.what))
            return
        self.result.files[theirs.reader] = self.result.files.get(theirs.reader, 0) + 1
        self.result.tensors += len(tensors)
        for tensor in sorted(tensors.keys() ^ theirs.keys()):
            who = "streamconv" if tensor in tensors else theirs.reader
            self.result.refused.append(NotAgreed(name, tensor, f"{who} alone finds it"))
        both = {tensor: tensors[tensor] for tensor in tensors if tensor in theirs}
        self.before = self.result.nbytes
        for tensor in both if self.result.mode == ALL else _sample(both):
            verdict = self.tensor(both[tensor], theirs, tensor)
            for found, why in ((self.result.refused, verdict.refused), (self.result.different, verdict.different)):
                found += [] if why is None else [NotAgreed(name, tensor, why)]

    def tensor(self, ours: LazyTensor, theirs: ReferenceFile, name: str) -> TensorVerdict:
        """Compare a tensor."""
        if not theirs.is_mapped and 2 * ours.nbytes > self.room.nbytes:
            sizes = f"twice {format_bytes(ours.nbytes)} do not fit {format_bytes(self.room.nbytes)} of the budget"
            return TensorVerdict(refused=f"{theirs.reader} reads it whole: {sizes}")
        try:
            other = theirs[name]
        except UnsupportedError as error:
            return TensorVerdict(refused=error.what)
        self.result.compared += 1
        what = _unlike(ours, other)
        boxes = [] if what else list(parts((ours,), self.room.settings.block))
        for start, (box,) in boxes if self.result.mode == ALL else boxes[:1] + boxes[1:][-1:]:
            found = _first_difference(self.reader.read(box), _part(other, start, box.shape))
            theirs.give_back()
            if found is not None:
                there = [first + index for first, index in zip(start, found, strict=True)]
                return TensorVerdict(different=f"it differs from what {theirs.reader} reads, first at {there}")
            self.result.nbytes += box.nbytes
            self.progress(self.result.nbytes - self.before)
        return TensorVerdict(different=what)


def _sample(tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    """The first, the middle, the last and the largest of a file's tensors."""
    names = list(tensors)
    if names:
        largest = max(names, key=lambda name: tensors[name].nbytes)
        yield from dict.fromkeys((names[0], names[len(names) // 2], names[-1], largest))


def _unlike(ours: LazyTensor, theirs: torch.Tensor) -> str | None:
    """How shape and dtype differ."""
    own, other = (ours.shape, str(ours.dtype)), (tuple(theirs.shape), str(theirs.dtype).removeprefix("torch."))
    return None if own == other else f"{own[1]} {list(own[0])}, the reference reads {other[1]} {list(other[0])}"


def _part(tensor: torch.Tensor, start: Sequence[int], shape: Sequence[int]) -> NDArray:
    """A box of a tensor as bytes."""
    import torch

    box = tensor[tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))]
    own = box.detach().clone(memory_format=torch.contiguous_format)  # with strides of its own, whatever a file says
    raw: NDArray = own.reshape(-1).view(torch.uint8).numpy()
    return raw


def _first_difference(ours: NDArray, raw: NDArray) -> tuple[int, ...] | None:
    """The index of the first element that differs in any bit."""
    differs = bits_differ(ours, raw.view(ours.dtype).reshape(ours.shape))
    return None if differs is None else tuple(int(index) for index in np.argwhere(differs)[0])
