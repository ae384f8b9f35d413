"""The job that adds a low-rank update to a matrix, band of rows by band of rows.

The sum is that of peft's ``merge`` of an adapter in fp32 [``peft/tuners/lora/layer.py:Linear.get_delta_weight``, whose
adapters are cast to fp32 when they are loaded, ``autocast_adapter_dtype``]: the product in fp32, times the scale, added
to the matrix in the dtype of the result, rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from streamconv.core.dtypes import DTYPES, DType, cast_into
from streamconv.core.lazy import LazyTensor
from streamconv.core.low_rank import LowRank
from streamconv.core.views import View
from streamconv.io.direct import PAGE, Buffer
from streamconv.moves.tiles import Tile, Write, placed, plan_reads

if TYPE_CHECKING:
    import numpy.typing as npt

    NDArray = npt.NDArray[Any]

__all__ = ["LowRankJob", "LowRankMove", "ReadBox"]

_FP32 = DTYPES["float32"]
_ROWS, _SMALL_PRODUCT = 16, 1_000_001


@dataclass(frozen=True, slots=True)
class ReadBox:
    """A box of a tensor in the input buffer; position and strides in bytes."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: DType
    position: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LowRankMove:
    """Rows of a matrix, and of the thin one at its left, and the whole thin one at its right, to rows of the sum."""

    rows: int
    columns: int
    rank: int
    scale: float
    base: tuple[ReadBox, ...]
    left: tuple[ReadBox, ...]
    right: tuple[ReadBox, ...]
    target_dtype: DType
    position: int

    def apply(self, source: Buffer, target: Buffer) -> None:
        """Compute the rows.

        Raises:
            DifferenceError: a value does not fit the type of the result.
        """
        import numpy as np

        left = _gathered(self.left, (self.rows, self.rank), _FP32, source)
        right = _gathered(self.right, (self.rank, self.columns), _FP32, source)
        update = np.empty((self.rows, self.columns), np.float32)
        height = _height(self.rank, self.columns)
        for first in range(0, self.rows, height):
            part = left[first : first + height]
            # Rows of zeros fill the last part up.
            whole = (
                part
                if len(part) == height
                else np.vstack([part, np.zeros((height - len(part), self.rank), np.float32)])
            )
            update[first : first + height] = (whole @ right)[: len(part)]
        update *= np.float32(self.scale)
        base = _gathered(self.base, (self.rows, self.columns), self.target_dtype, source)
        if self.target_dtype.itemsize > _FP32.itemsize:
            update = base + update
        else:
            update += base.astype(np.float32, copy=False)
        result: NDArray = np.ndarray((self.rows, self.columns), self.target_dtype.numpy, target, self.position)
        cast_into(update, result)


def _height(rank: int, columns: int) -> int:
    """The rows of a product that is computed at once: always as many, whatever the tile.

    OpenBLAS sums small products (up to a million multiplications) in another order than large ones, so that the bits of
    a result would depend on the block.
    """
    rows = -(-_SMALL_PRODUCT // max(1, rank * columns))
    return max(_ROWS, -(-rows // _ROWS) * _ROWS)


def _gathered(parts: Sequence[ReadBox], shape: tuple[int, int], dtype: DType, source: Buffer) -> NDArray:
    import numpy as np

    whole: NDArray = np.zeros(shape, dtype.numpy)
    for part in parts:
        box = tuple(slice(first, first + size) for first, size in zip(part.start, part.shape, strict=True))
        cast_into(np.ndarray(part.shape, part.dtype.numpy, source, part.position, part.strides), whole[box])
    return whole


@dataclass(frozen=True, slots=True)
class LowRankJob:
    """A matrix ``base`` with its update, at ``offset`` of output file number ``file``."""

    file: int
    offset: int
    base: LazyTensor
    update: LowRank

    @property
    def read_nbytes(self) -> int:
        """Bytes to read; the thin matrix at the right is read for each tile and counted once."""
        return sum(
            piece.numel * view.dtype.itemsize
            for tensor in (self.base, self.update.left, self.update.right)
            for piece in tensor.pieces
            for view in piece.views
        )

    @property
    def length(self) -> int:
        """The number of rows; a tile is a range of them."""
        return self.base.shape[0]

    @property
    def row_nbytes(self) -> int:
        """Bytes that a row takes: as it is read and written, and in fp32 while the sum is computed."""
        columns, rank = self.base.shape[1], self.update.rank
        stored = max([16, *(view.dtype.itemsize for piece in self.base.pieces for view in piece.views)])
        return columns * (stored + 12) + rank * 12

    @property
    def right_nbytes(self) -> int:
        """Bytes of the right thin matrix, as it is read and in fp32, and of one block of the product; of the left
        one too if it is stored by columns, which cannot be read by rows.
        """
        spans = sum(_span(piece.views, piece.shape) for piece in self.update.right.pieces)
        by_columns = any(view.strides[0] < view.strides[1] for p in self.update.left.pieces for view in p.views)
        left = sum(_span(piece.views, piece.shape) for piece in self.update.left.pieces) if by_columns else 0
        rank, columns = self.update.rank, self.base.shape[1]
        return spans + left + 4 * self.update.right.numel + 4 * _height(rank, columns) * (rank + columns)

    @property
    def smallest_block(self) -> int:
        """The smallest block in bytes: one row, and the thin matrix at the right."""
        return max(PAGE, self.row_nbytes + self.right_nbytes)

    @property
    def place(self) -> tuple[int, int]:
        """(file, offset) of its first write; jobs are sorted by it."""
        return self.file, self.offset

    def cut(self, first: int, last: int, block: int) -> Iterator[tuple[int, int]]:
        """Ranges of as many rows as fit into ``block`` bytes beside the thin matrix at the right."""
        step = max(1, (block - self.right_nbytes) // self.row_nbytes)
        for start in range(first, last, step):
            yield start, min(start + step, last)

    def tile(self, first: int, last: int) -> Tile:
        """The tile of rows ``first`` to ``last``."""
        tensors = (self.base.slice(0, first, last), self.update.left.slice(0, first, last), self.update.right)
        boxes: list[tuple[View, tuple[int, ...]]] = [
            (view, piece.shape) for tensor in tensors for piece in tensor.pieces for view in piece.views
        ]
        reads, places = plan_reads(boxes)
        found = iter(places)
        base, left, right = (
            tuple(ReadBox(piece.start, piece.shape, piece.views[0].dtype, *next(found)) for piece in tensor.pieces)
            for tensor in tensors
        )
        row = self.base.shape[1] * self.base.dtype.itemsize
        nbytes = (last - first) * row
        position, _ = placed(0, nbytes, self.offset + first * row)
        move = LowRankMove(
            last - first,
            self.base.shape[1],
            self.update.rank,
            self.update.scale,
            base,
            left,
            right,
            self.base.dtype,
            position,
        )
        write = Write(self.file, self.offset, first * row, nbytes, position)
        return Tile(first, last, tuple(reads), (move,), (write,))


def _span(views: Sequence[View], shape: tuple[int, ...]) -> int:
    return sum(view.span(shape)[1] for view in views) if prod(shape) else 0
