"""Jobs and their tiles: which bytes to read, how to move them, where to write them.

Two kinds of job. A ``RunJob`` copies one long run of bytes, casting it if need be, to one or more places. A
``RowsJob`` fills all target tensors that share source rows together: it reads whole rows once, scatters them in
memory, and writes long runs. Both are cut into tiles of bounded size while they run, so that memory depends on the
block, not on the tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from streamconv.dtypes import DType
from streamconv.lazy import LazyTensor, Piece, Storage, View

__all__ = ["Job", "Move", "Read", "RowsJob", "RunJob", "Target", "Tile", "Write"]


@dataclass(frozen=True, slots=True)
class Target:
    """A contiguous target tensor at ``offset`` of output file number ``file``."""

    file: int
    offset: int
    tensor: LazyTensor


@dataclass(frozen=True, slots=True)
class Read:
    """``nbytes`` of a storage from byte ``start``, into the input buffer at ``position``."""

    storage: Storage
    start: int
    nbytes: int
    position: int


@dataclass(frozen=True, slots=True)
class Move:
    """A box of elements from the input buffer to the output buffer; strides and positions in bytes.

    Several sources mean their mean.
    """

    shape: tuple[int, ...]
    source_dtype: DType
    sources: tuple[tuple[int, tuple[int, ...]], ...]
    target_dtype: DType
    position: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """``nbytes`` from byte ``start`` of the record at ``record`` in output file ``file``.

    They come from ``position`` of the output buffer, or of the input buffer if the tile has no moves.
    """

    file: int
    record: int
    start: int
    nbytes: int
    position: int


@dataclass(frozen=True, slots=True)
class Tile:
    """One step of a job. Without moves the bytes go from the input buffer as they are."""

    reads: tuple[Read, ...]
    moves: tuple[Move, ...]
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class RunJob:
    """One run of ``numel`` elements, from byte ``start`` of a storage to one or more (file, record, start)."""

    storage: Storage
    start: int
    numel: int
    source: DType
    target: DType
    sinks: tuple[tuple[int, int, int], ...]

    @property
    def read_nbytes(self) -> int:
        """Bytes to read."""
        return self.numel * self.source.itemsize

    @property
    def smallest_block(self) -> int:
        """A run can be cut anywhere."""
        return 4096

    @property
    def place(self) -> tuple[int, int]:
        """Where it writes first, for ordering."""
        file, record, start = self.sinks[0]
        return file, record + start

    def tiles(self, block: int) -> Iterator[Tile]:
        """Tiles that read and write at most ``block`` bytes each."""
        step = block // max(self.source.itemsize, self.target.itemsize)
        for first in range(0, self.numel, step):
            count = min(step, self.numel - first)
            read = Read(self.storage, self.start + first * self.source.itemsize, count * self.source.itemsize, 0)
            moves: tuple[Move, ...] = ()
            if self.source != self.target:
                source = ((0, (self.source.itemsize,)),)
                moves = (Move((count,), self.source, source, self.target, 0, (self.target.itemsize,)),)
            size = self.target.itemsize
            writes = tuple(Write(f, record, start + first * size, count * size, 0) for f, record, start in self.sinks)
            yield Tile((read,), moves, writes)


@dataclass(frozen=True, slots=True)
class RowsJob:
    """Target tensors with the same number of rows (axis 0) that read the same storages, filled together."""

    targets: tuple[Target, ...]

    @property
    def read_nbytes(self) -> int:
        """Bytes of all pieces; a storage that two targets read in common is counted once for each."""
        pieces = (piece for target in self.targets for piece in target.tensor.pieces)
        return sum(piece.numel * view.dtype.itemsize for piece in pieces for view in piece.views)

    @property
    def row_nbytes(self) -> int:
        """Bytes that one row of all targets takes in the input or the output buffer, whichever is more.

        A mean is made in double precision: its rows count sixteen bytes an element more.
        """
        rows = max(1, self.targets[0].tensor.shape[0]) if self.targets[0].tensor.shape else 1
        written = sum(target.tensor.nbytes for target in self.targets)
        extra = sum(16 * p.numel for target in self.targets for p in target.tensor.pieces if len(p.views) > 1)
        return -(-(max(written, self.read_nbytes) + extra) // rows)

    @property
    def smallest_block(self) -> int:
        """One row of all targets."""
        return max(4096, self.row_nbytes)

    @property
    def place(self) -> tuple[int, int]:
        """Where it writes first, for ordering."""
        return min((target.file, target.offset) for target in self.targets)

    def tiles(self, block: int) -> Iterator[Tile]:
        """Tiles of as many rows as fit ``block`` bytes of output; the input buffer needs at most twice that."""
        total = self.targets[0].tensor.shape[0] if self.targets[0].tensor.shape else 1
        step = max(1, block // self.row_nbytes)
        for first in range(0, total, step):
            yield self._tile(first, min(first + step, total))

    def _tile(self, first: int, last: int) -> Tile:
        parts: list[tuple[Piece, Target, int]] = []
        writes: list[Write] = []
        position = 0
        for target in self.targets:
            tensor = target.tensor
            row = tensor.nbytes // max(1, tensor.shape[0]) if tensor.shape else tensor.nbytes
            rows = tensor.slice(0, first, last) if tensor.shape else tensor
            parts += [(piece, target, position) for piece in rows.pieces]
            writes.append(Write(target.file, target.offset, first * row, (last - first) * row, position))
            position += _aligned((last - first) * row)
        reads, places = _plan_reads([(view, piece.shape) for piece, _, _ in parts for view in piece.views])
        moves: list[Move] = []
        source = iter(places)
        for piece, target, base in parts:
            found = tuple(next(source) for _ in piece.views)
            moves.append(_move(piece, found, target.tensor, base))
        return Tile(tuple(reads), tuple(moves), tuple(writes))


Job = RunJob | RowsJob


def _aligned(nbytes: int) -> int:
    """Long parts of a buffer begin on a cache line; short ones are packed, or the padding would outgrow them."""
    return -(-nbytes // 64) * 64 if nbytes >= 4096 else nbytes


def _move(piece: Piece, sources: tuple[tuple[int, tuple[int, ...]], ...], tensor: LazyTensor, base: int) -> Move:
    size = tensor.dtype.itemsize
    strides = tuple(size * prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    position = base + sum(a * s for a, s in zip(piece.start, strides, strict=True))
    return Move(piece.shape, piece.views[0].dtype, sources, tensor.dtype, position, strides)


def _plan_reads(
    boxes: Sequence[tuple[View, tuple[int, ...]]],
) -> tuple[list[Read], list[tuple[int, tuple[int, ...]]]]:
    """Reads that bring the boxes into the input buffer, and (position, byte strides) of each box there.

    Boxes whose spans touch in storage are read in one go if at least half of that span is wanted; else run by run.
    """
    by_storage: dict[Storage, list[int]] = defaultdict(list)
    spans: list[tuple[int, int]] = []
    for number, (view, shape) in enumerate(boxes):
        start, nbytes = view.span(shape)
        spans.append((start, start + nbytes))
        by_storage[view.storage].append(number)
    reads: list[Read] = []
    places: dict[int, tuple[int, tuple[int, ...]]] = {}
    position = 0
    for storage, numbers in by_storage.items():
        for start, stop, group in _touching(sorted(numbers, key=spans.__getitem__), spans):
            wanted = sum(prod(boxes[n][1]) * boxes[n][0].dtype.itemsize for n in group)
            if 2 * wanted >= stop - start:
                reads.append(Read(storage, start, stop - start, position))
                for n in group:
                    view = boxes[n][0]
                    strides = tuple(s * view.dtype.itemsize for s in view.strides)
                    places[n] = (position + spans[n][0] - start, strides)
                position += _aligned(stop - start)
                continue
            for n in group:
                runs, strides, nbytes = _runs(*boxes[n], position)
                reads += runs
                places[n] = (position, strides)
                position += _aligned(nbytes)
    return reads, [places[number] for number in range(len(boxes))]


def _touching(ordered: Sequence[int], spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, list[int]]]:
    """(start, stop, members) of maximal groups of spans that overlap or touch."""
    group: list[int] = []
    start = stop = 0
    for number in ordered:
        if group and spans[number][0] <= stop:
            group.append(number)
            stop = max(stop, spans[number][1])
        else:
            if group:
                yield start, stop, group
            (start, stop), group = spans[number], [number]
    if group:
        yield start, stop, group


def _runs(view: View, shape: tuple[int, ...], position: int) -> tuple[list[Read], tuple[int, ...], int]:
    """Reads of each contiguous run of a box, packed in the buffer, with the packed byte strides and their total."""
    size = view.dtype.itemsize
    loops = sorted((axis for axis in range(len(shape)) if shape[axis] > 1), key=lambda axis: -view.strides[axis])
    packed = [0] * len(shape)
    inner = 1
    while loops and view.strides[loops[-1]] == inner:
        axis = loops.pop()
        packed[axis] = inner * size
        inner *= shape[axis]
    step = inner * size
    starts = [view.offset]
    for axis in loops:
        starts = [start + index * view.strides[axis] for start in starts for index in range(shape[axis])]
    for axis in reversed(loops):
        packed[axis] = step
        step *= shape[axis]
    run = inner * size
    reads = [Read(view.storage, start * size, run, position + i * run) for i, start in enumerate(starts)]
    return reads, tuple(packed), step
