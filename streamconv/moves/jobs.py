"""Jobs and their tiles: which bytes to read, how to move them, where to write them.

Three kinds of job. A ``RunJob`` copies one long run of bytes, casting it if need be, to one or more places. A
``RowsJob`` fills all target tensors that share source rows together: it reads whole rows once, scatters them in
memory, and writes long runs. A ``BlocksJob`` transposes a matrix. All are cut into tiles of bounded size while they
run, so that memory depends on the block, not on the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from streamconv.core.dtypes import DType
from streamconv.core.lazy import LazyTensor, Piece, Storage
from streamconv.core.low_rank import LowRank
from streamconv.io.direct import PAGE, congruent
from streamconv.moves.low_rank import LowRankJob
from streamconv.moves.tiles import Move, Read, Tile, Write, placed, plan_reads

__all__ = ["BlocksJob", "Job", "RowsJob", "RunJob", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A contiguous target tensor at ``offset`` of output file number ``file``, and what is added to it, if anything."""

    file: int
    offset: int
    tensor: LazyTensor
    update: LowRank | None = None


@dataclass(frozen=True, slots=True)
class RunJob:
    """One run of ``numel`` elements, from byte ``start`` of a storage to one or more sinks, (file, record, start)."""

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
    def length(self) -> int:
        """The number of elements; a tile is a range of them."""
        return self.numel

    @property
    def smallest_block(self) -> int:
        """The smallest block in bytes: a page, since a run can be cut anywhere."""
        return PAGE

    @property
    def place(self) -> tuple[int, int]:
        """(file, offset) of its first write; jobs are sorted by it."""
        file, record, start = self.sinks[0]
        return file, record + start

    def cut(self, first: int, last: int, block: int) -> Iterator[tuple[int, int]]:
        """Ranges of elements that read and write at most ``block`` bytes each, ending on pages of the first sink."""
        step = block // max(self.source.itemsize, self.target.itemsize)
        while first < last:
            stop = first + step
            beyond = (self.place[1] + stop * self.target.itemsize) % PAGE // self.target.itemsize
            stop = min(last, stop - beyond if beyond < step else stop)
            yield first, stop
            first = stop

    def tile(self, first: int, last: int) -> Tile:
        """The tile of elements ``first`` to ``last``."""
        count, size = last - first, self.target.itemsize
        start = self.start + first * self.source.itemsize
        read = Read(self.storage, start, count * self.source.itemsize, congruent(0, self.storage.offset + start))
        position = read.position
        moves: tuple[Move, ...] = ()
        if self.source != self.target:
            position = congruent(0, self.place[1] + first * size)
            source = ((read.position, (self.source.itemsize,)),)
            moves = (Move((count,), self.source, source, self.target, position, (size,)),)
        writes = (Write(f, record, begin + first * size, count * size, position) for f, record, begin in self.sinks)
        return Tile(first, last, (read,), moves, tuple(writes))


@dataclass(frozen=True, slots=True)
class RowsJob:
    """Target tensors with the same number of rows (axis 0) that read the same storages, filled together."""

    targets: tuple[Target, ...]

    @property
    def read_nbytes(self) -> int:
        """Bytes to read; those that two targets share are counted for each of them."""
        pieces = (piece for target in self.targets for piece in target.tensor.pieces)
        return sum(piece.numel * view.dtype.itemsize for piece in pieces for view in piece.views)

    @property
    def row_nbytes(self) -> int:
        """Bytes that one row of all targets takes in the input or the output buffer, whichever is more.

        Sums and means are computed in double precision, which takes 16 bytes more for each element.
        """
        rows = max(1, self.targets[0].tensor.shape[0]) if self.targets[0].tensor.shape else 1
        written = sum(target.tensor.nbytes for target in self.targets)
        pieces = (piece for target in self.targets for piece in target.tensor.pieces)
        extra = sum(16 * piece.numel for piece in pieces if piece.views and not piece.is_stored)
        return -(-(max(written, self.read_nbytes) + extra) // rows)

    @property
    def length(self) -> int:
        """The number of rows; a tile is a range of them."""
        return self.targets[0].tensor.shape[0] if self.targets[0].tensor.shape else 1

    @property
    def smallest_block(self) -> int:
        """The smallest block in bytes: one row of all targets."""
        return max(PAGE, self.row_nbytes)

    @property
    def place(self) -> tuple[int, int]:
        """(file, offset) of its first write; jobs are sorted by it."""
        return min((target.file, target.offset) for target in self.targets)

    def cut(self, first: int, last: int, block: int) -> Iterator[tuple[int, int]]:
        """Ranges of as many rows as fit into ``block`` bytes of output; their input takes at most twice that."""
        step = max(1, block // self.row_nbytes)
        for start in range(first, last, step):
            yield start, min(start + step, last)

    def tile(self, first: int, last: int) -> Tile:
        """The tile of rows ``first`` to ``last``."""
        parts: list[tuple[Piece, Target, int]] = []
        writes: list[Write] = []
        position = 0
        for target in self.targets:
            tensor = target.tensor
            row = tensor.nbytes // max(1, tensor.shape[0]) if tensor.shape else tensor.nbytes
            rows = tensor.slice(0, first, last) if tensor.shape else tensor
            nbytes = (last - first) * row
            position, after = placed(position, nbytes, target.offset + first * row)
            parts += [(piece, target, position) for piece in rows.pieces]
            writes.append(Write(target.file, target.offset, first * row, nbytes, position))
            position = after
        reads, places = plan_reads([(view, piece.shape) for piece, _, _ in parts for view in piece.views])
        moves: list[Move] = []
        next_places = iter(places)
        for piece, target, base in parts:
            sources = tuple(next(next_places) for _ in piece.views)
            moves.append(_move(piece, sources, target.tensor, base))
        return Tile(first, last, tuple(reads), tuple(moves), tuple(writes))


@dataclass(frozen=True, slots=True)
class BlocksJob:
    """A matrix that is stored transposed, moved in blocks: bands of rows, each cut along its columns.

    A row of the matrix is a column of the storage, so whole rows would have to be gathered element by element. A band
    of :attr:`height` rows is read in runs of ``height`` elements, and written in runs as long as the block is wide.
    """

    target: Target
    height: int = 1024

    @property
    def read_nbytes(self) -> int:
        """Bytes to read."""
        return sum(piece.numel * view.dtype.itemsize for piece in self.target.tensor.pieces for view in piece.views)

    @property
    def length(self) -> int:
        """The number of columns of all bands together; a tile is a range of them."""
        rows, columns = self.target.tensor.shape
        return -(-rows // self.height) * columns

    @property
    def column_nbytes(self) -> int:
        """Bytes that one column of a band takes in the input or the output buffer, whichever is more."""
        tensor = self.target.tensor
        sizes = [tensor.dtype.itemsize, *(view.dtype.itemsize for piece in tensor.pieces for view in piece.views)]
        return min(self.height, tensor.shape[0]) * max(sizes)

    @property
    def smallest_block(self) -> int:
        """The smallest block in bytes: one column of a band."""
        return max(PAGE, self.column_nbytes)

    @property
    def place(self) -> tuple[int, int]:
        """(file, offset) of its first write; jobs are sorted by it."""
        return self.target.file, self.target.offset

    def cut(self, first: int, last: int, block: int) -> Iterator[tuple[int, int]]:
        """Ranges of as many columns of one band as fit into ``block`` bytes."""
        columns, step = self.target.tensor.shape[1], max(1, block // self.column_nbytes)
        while first < last:
            stop = min(first + step, last, (first // columns + 1) * columns)
            yield first, stop
            first = stop

    def tile(self, first: int, last: int) -> Tile:
        """The tile of columns ``first`` to ``last``, all of one band."""
        tensor, size = self.target.tensor, self.target.tensor.dtype.itemsize
        rows, columns = tensor.shape
        top, left = first // columns * self.height, first % columns
        height, width = min(self.height, rows - top), last - first
        if left + width > columns:
            raise ValueError(f"columns {first} to {last} are of more than one band of {columns}")
        part = tensor.slice(0, top, top + height).slice(1, left, left + width)
        reads, places = plan_reads([(piece.views[0], piece.shape) for piece in part.pieces])
        moves = [_move(piece, (place,), part, 0) for piece, place in zip(part.pieces, places, strict=True)]
        run = width * size
        starts = (((top + row) * columns + left) * size for row in range(height))
        writes = tuple(
            Write(self.target.file, self.target.offset, start, run, row * run) for row, start in enumerate(starts)
        )
        return Tile(first, last, tuple(reads), tuple(moves), writes)


Job = RunJob | RowsJob | BlocksJob | LowRankJob


def _move(piece: Piece, sources: tuple[tuple[int, tuple[int, ...]], ...], tensor: LazyTensor, base: int) -> Move:
    size = tensor.dtype.itemsize
    strides = tuple(size * prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    position = base + sum(a * s for a, s in zip(piece.start, strides, strict=True))
    source = piece.views[0].dtype if piece.views else tensor.dtype
    return Move(piece.shape, source, sources, tensor.dtype, position, strides, piece.divisor)
