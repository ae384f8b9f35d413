"""``LazyTensor``: a tensor as boxes of stored bytes, without reading any of them.

Every operation that a conversion needs (slice, concat, permute, flatten, unflatten, expand, mean, cast) maps boxes to
boxes, so an expression never grows: a lazy tensor is always its normal form, a list of ``Piece``. A piece says that
the box ``start .. start + shape`` of the tensor is the strided ``View`` of one stored record (or the mean of
several). What an engine needs to know, which bytes go where, can be read off directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamconv.dtypes import DType, cast_into

if TYPE_CHECKING:
    import torch

__all__ = ["LazyTensor", "Piece", "Storage", "View", "concat", "mean"]

NDArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Storage:
    """One record of bytes in a file: ``nbytes`` from ``offset``; ``crc`` is its recorded CRC-32, if it has one."""

    path: Path
    offset: int
    nbytes: int
    name: str
    crc: int | None = None


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a storage: ``offset`` and ``strides`` count elements of ``dtype``."""

    storage: Storage
    dtype: DType
    offset: int
    strides: tuple[int, ...]

    def moved(self, steps: Sequence[int]) -> View:
        """The same view, its origin moved by ``steps`` along each axis."""
        return replace(self, offset=self.offset + sum(s * t for s, t in zip(steps, self.strides, strict=True)))

    def open(self, shape: Sequence[int]) -> NDArray:
        """The elements of a box of ``shape``, mapped and read-only."""
        extent = sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True)) + 1
        itemsize = self.dtype.itemsize
        if prod(shape) == 0:
            return np.empty(tuple(shape), self.dtype.numpy)
        flat = np.memmap(
            self.storage.path, np.uint8, "r", self.storage.offset + self.offset * itemsize, (extent * itemsize,)
        )
        strides = tuple(s * itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat.view(self.dtype.numpy), tuple(shape), strides, writeable=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor and the view that fills it; several views mean their mean. ``fill`` marks made-up rows."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    views: tuple[View, ...]
    fill: bool = False

    @property
    def numel(self) -> int:
        """Elements in the box."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of ``shape`` and ``dtype`` whose bytes are still where they are stored."""

    shape: tuple[int, ...]
    dtype: DType
    pieces: tuple[Piece, ...]

    @classmethod
    def stored(cls, view: View, shape: Sequence[int]) -> LazyTensor:
        """A tensor that is one view of one storage."""
        box = tuple(shape)
        pieces = (Piece((0,) * len(box), box, (view,)),) if prod(box) else ()
        return cls(box, view.dtype, pieces)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.dtype.itemsize

    # -- the algebra -----------------------------------------------------------------------------------------------

    def slice(self, dim: int, start: int, stop: int) -> LazyTensor:
        """Rows ``start`` to ``stop`` of axis ``dim``."""
        if not 0 <= start <= stop <= self.shape[dim]:
            raise IndexError(f"slice {start}:{stop} of axis {dim} of {self.shape}")
        pieces = []
        for piece in self.pieces:
            low, high = max(start, piece.start[dim]), min(stop, piece.start[dim] + piece.shape[dim])
            if low < high:
                steps = _put((0,) * len(self.shape), dim, low - piece.start[dim])
                pieces.append(
                    replace(
                        piece,
                        start=_put(piece.start, dim, low - start),
                        shape=_put(piece.shape, dim, high - low),
                        views=tuple(view.moved(steps) for view in piece.views),
                    )
                )
        return LazyTensor(_put(self.shape, dim, stop - start), self.dtype, tuple(pieces))

    def permute(self, *order: int) -> LazyTensor:
        """The axes in another order, as ``torch.permute``."""

        def swap(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(values[axis] for axis in order)

        pieces = tuple(
            replace(
                p,
                start=swap(p.start),
                shape=swap(p.shape),
                views=tuple(replace(v, strides=swap(v.strides)) for v in p.views),
            )
            for p in self.pieces
        )
        return LazyTensor(swap(self.shape), self.dtype, pieces)

    def unflatten(self, dim: int, outer: int, inner: int) -> LazyTensor:
        """Axis ``dim`` of ``outer * inner`` as two axes, as ``torch.unflatten``."""
        if self.shape[dim] != outer * inner:
            raise ValueError(f"axis {dim} of {self.shape} is not {outer} x {inner}")
        pieces = [part for piece in self.pieces for part in _unflatten_piece(piece, dim, inner)]
        return LazyTensor((*self.shape[:dim], outer, inner, *self.shape[dim + 1 :]), self.dtype, tuple(pieces))

    def flatten(self, dim: int) -> LazyTensor:
        """Axes ``dim`` and ``dim + 1`` as one, as ``torch.flatten``."""
        outer, inner = self.shape[dim : dim + 2]
        pieces = [part for piece in self.pieces for part in _flatten_piece(piece, dim, inner)]
        return LazyTensor((*self.shape[:dim], outer * inner, *self.shape[dim + 2 :]), self.dtype, tuple(pieces))

    def repeat_row(self, row: int, times: int) -> LazyTensor:
        """``times`` copies of one row of axis 0, marked as fill: they stand for no source element of their own."""
        pieces = []
        for piece in self.slice(0, row, row + 1).pieces:
            views = tuple(replace(view, strides=(0, *view.strides[1:])) for view in piece.views)
            pieces.append(replace(piece, shape=(times, *piece.shape[1:]), views=views, fill=True))
        return LazyTensor((times, *self.shape[1:]), self.dtype, tuple(pieces))

    def cast(self, dtype: DType) -> LazyTensor:
        """The same elements as ``dtype``; types that are not floating stay as they are."""
        return replace(self, dtype=dtype) if self.dtype.is_floating and dtype.is_floating else self

    def coalesced(self) -> LazyTensor:
        """The same tensor in as few pieces as neighbouring boxes allow."""
        pieces = list(self.pieces)
        for dim in reversed(range(len(self.shape))):
            pieces = _merge_along(pieces, dim)
        return replace(self, pieces=tuple(sorted(pieces, key=lambda piece: piece.start)))

    # -- reading ---------------------------------------------------------------------------------------------------

    def numpy(self) -> NDArray:
        """The elements: mapped and read-only if they are one stored view of this dtype, else a new array."""
        if len(self.pieces) == 1:
            (piece,) = self.pieces
            if len(piece.views) == 1 and piece.views[0].dtype == self.dtype:
                return piece.views[0].open(piece.shape)
        result = np.empty(self.shape, self.dtype.numpy)
        for piece in self.pieces:
            box = tuple(slice(a, a + n) for a, n in zip(piece.start, piece.shape, strict=True))
            arrays = [view.open(piece.shape) for view in piece.views]
            cast_into(arrays[0] if len(arrays) == 1 else average(arrays), result[box])
        return result

    def torch(self) -> torch.Tensor:
        """The elements as a torch tensor, sharing memory with :meth:`numpy`'s array. Do not write to it."""
        import warnings

        import torch

        array = self.numpy()
        with warnings.catch_warnings():
            # The array is a read-only map; torch has no read-only tensors and says so once a process.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            if self.dtype.name in _NOT_IN_NUMPY:
                carrier = array.view({1: np.uint8, 2: np.int16}[self.dtype.itemsize])
                return torch.from_numpy(carrier).view(getattr(torch, self.dtype.name))
            return torch.from_numpy(array)


_NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def average(arrays: Sequence[NDArray]) -> NDArray:
    """The element-wise mean in double precision."""
    total = arrays[0].astype(np.float64)
    for array in arrays[1:]:
        total += array.astype(np.float64)
    return total / len(arrays)


def concat(tensors: Sequence[LazyTensor], dim: int) -> LazyTensor:
    """Tensors side by side along ``dim``; all other sizes and the dtypes must agree."""
    first = tensors[0]
    pieces: list[Piece] = []
    length = 0
    for tensor in tensors:
        if tensor.dtype != first.dtype or _put(tensor.shape, dim, 0) != _put(first.shape, dim, 0):
            raise ValueError(f"cannot join {tensor.shape} {tensor.dtype} to {first.shape} {first.dtype} on axis {dim}")
        pieces += [replace(p, start=_put(p.start, dim, p.start[dim] + length)) for p in tensor.pieces]
        length += tensor.shape[dim]
    return LazyTensor(_put(first.shape, dim, length), first.dtype, tuple(pieces))


def mean(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """The element-wise mean of tensors that are each one stored view of the same shape."""
    first = tensors[0]
    if any(t.shape != first.shape or t.dtype != first.dtype or len(t.pieces) != 1 for t in tensors):
        raise ValueError("the mean needs whole stored tensors of one shape and dtype")
    views = tuple(t.pieces[0].views[0] for t in tensors)
    return replace(first, pieces=(replace(first.pieces[0], views=views),))


def _put(values: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    return (*values[:dim], value, *values[dim + 1 :])


def _unflatten_piece(piece: Piece, dim: int, inner: int) -> Iterable[Piece]:
    """Cut a piece at multiples of ``inner`` so that each part is a box of the two new axes."""
    position, end = piece.start[dim], piece.start[dim] + piece.shape[dim]
    while position < end:
        row, column = divmod(position, inner)
        whole = (end - position) // inner if column == 0 else 0
        rows, columns = (whole, inner) if whole else (1, min(inner - column, end - position))
        steps = _put((0,) * len(piece.shape), dim, position - piece.start[dim])
        views = []
        for view in piece.views:
            stride = view.strides[dim]
            moved = view.moved(steps)
            views.append(
                replace(moved, strides=(*view.strides[:dim], stride * inner, stride, *view.strides[dim + 1 :]))
            )
        yield replace(
            piece,
            start=(*piece.start[:dim], row, column, *piece.start[dim + 1 :]),
            shape=(*piece.shape[:dim], rows, columns, *piece.shape[dim + 1 :]),
            views=tuple(views),
        )
        position += rows * columns


def _flatten_piece(piece: Piece, dim: int, inner: int) -> Iterable[Piece]:
    """Join two axes of a piece, row by row where the stored strides do not allow one step."""
    (row, column), (rows, columns) = piece.start[dim : dim + 2], piece.shape[dim : dim + 2]
    pairs = [view.strides[dim : dim + 2] for view in piece.views]
    joins = columns == inner and all(rows == 1 or inner == 1 or outer == inner * step for outer, step in pairs)
    if not joins and rows > 1:
        for index in range(rows):
            steps = _put((0,) * len(piece.shape), dim, index)
            one = replace(
                piece,
                start=_put(piece.start, dim, row + index),
                shape=_put(piece.shape, dim, 1),
                views=tuple(view.moved(steps) for view in piece.views),
            )
            yield from _flatten_piece(one, dim, inner)
        return
    views = tuple(
        replace(v, strides=(*v.strides[:dim], outer if inner == 1 else step, *v.strides[dim + 2 :]))
        for v, (outer, step) in zip(piece.views, pairs, strict=True)
    )
    yield replace(
        piece,
        start=(*piece.start[:dim], row * inner + column, *piece.start[dim + 2 :]),
        shape=(*piece.shape[:dim], rows * columns, *piece.shape[dim + 2 :]),
        views=views,
    )


def _merge_along(pieces: list[Piece], dim: int) -> list[Piece]:
    merged: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (_put(p.start, dim, 0), _put(p.shape, dim, 0), p.start[dim])):
        joined = _joined(merged[-1], piece, dim) if merged else None
        if joined is None:
            merged.append(piece)
        else:
            merged[-1] = joined
    return merged


def _joined(left: Piece, right: Piece, dim: int) -> Piece | None:
    """The two pieces as one box, if they are neighbours on ``dim`` in the tensor and evenly spaced in storage."""
    if left.fill != right.fill or len(left.views) != len(right.views):
        return None
    if _put(left.start, dim, left.start[dim] + left.shape[dim]) != right.start:
        return None
    if _put(left.shape, dim, 0) != _put(right.shape, dim, 0):
        return None
    views = []
    for a, b in zip(left.views, right.views, strict=True):
        step, rest = divmod(b.offset - a.offset, left.shape[dim])
        known = {v.strides[dim] for v, n in ((a, left.shape[dim]), (b, right.shape[dim])) if n > 1}
        others = all(
            n == 1 or s == t
            for axis, (n, s, t) in enumerate(zip(left.shape, a.strides, b.strides, strict=True))
            if axis != dim
        )
        if a.storage != b.storage or a.dtype != b.dtype or rest or step < 0 or not known <= {step} or not others:
            return None
        views.append(replace(a, strides=_put(a.strides, dim, step)))
    return replace(left, shape=_put(left.shape, dim, left.shape[dim] + right.shape[dim]), views=tuple(views))
