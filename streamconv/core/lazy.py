"""``LazyTensor``: a tensor as boxes of stored bytes, without reading any of them.

Every operation that a conversion needs (slice, concat, permute, flatten, unflatten, expand, total, share, cast) maps
boxes to boxes, so an expression never grows: a lazy tensor is always in its normal form, a list of ``Piece``. A piece
fills the box ``start .. start + shape`` of the tensor from the strided ``View`` of one stored record (or from the sum
of several views, divided by a number; without a view the box is zeros). So the pieces directly tell an engine which
bytes go where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from streamconv.core.dtypes import DType, cast_into
from streamconv.core.views import Piece, Storage, View, flatten_piece, merge_along, put, unflatten_piece

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    NDArray = npt.NDArray[Any]

__all__ = ["LazyTensor", "Piece", "Storage", "View", "combined", "concat", "mean", "share", "total"]


@dataclass(frozen=True, slots=True, repr=False)
class LazyTensor:
    """A tensor of ``shape`` and ``dtype`` whose bytes are still where they are stored."""

    shape: tuple[int, ...]
    dtype: DType
    pieces: tuple[Piece, ...]

    def __repr__(self) -> str:
        count = "1 piece" if len(self.pieces) == 1 else f"{len(self.pieces)} pieces"
        return f"LazyTensor(shape={self.shape}, dtype={self.dtype}, {count})"

    @classmethod
    def stored(cls, view: View, shape: Sequence[int]) -> LazyTensor:
        """A tensor that is one view of one storage."""
        box = tuple(shape)
        pieces = (Piece((0,) * len(box), box, (view,)),) if prod(box) else ()
        return cls(box, view.dtype, pieces)

    @classmethod
    def zeros(cls, shape: Sequence[int], dtype: DType) -> LazyTensor:
        """A tensor of zeros, which are stored nowhere."""
        box = tuple(shape)
        pieces = (Piece((0,) * len(box), box, ()),) if prod(box) else ()
        return cls(box, dtype, pieces)

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
            first = piece.start[dim]
            low, high = max(start, first), min(stop, first + piece.shape[dim])
            if low < high:
                views = tuple([view.moved(dim, low - first) for view in piece.views])
                box = put(piece.start, dim, low - start), put(piece.shape, dim, high - low)
                pieces.append(piece.at(*box, views))
        return LazyTensor(put(self.shape, dim, stop - start), self.dtype, tuple(pieces))

    def permute(self, *order: int) -> LazyTensor:
        """The axes in another order, as ``torch.permute``."""
        if sorted(order) != list(range(len(self.shape))):
            raise ValueError(f"{order} is no order of {len(self.shape)} axes")

        def swap(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(values[axis] for axis in order)

        pieces = tuple(
            p.at(swap(p.start), swap(p.shape), tuple(v.strided(swap(v.strides)) for v in p.views)) for p in self.pieces
        )
        return LazyTensor(swap(self.shape), self.dtype, pieces)

    def unflatten(self, dim: int, outer: int, inner: int) -> LazyTensor:
        """Axis ``dim`` of ``outer * inner`` as two axes, as ``torch.unflatten``."""
        if self.shape[dim] != outer * inner:
            raise ValueError(f"axis {dim} of {self.shape} is not {outer} x {inner}")
        pieces = [part for piece in self.pieces for part in unflatten_piece(piece, dim, inner)]
        return LazyTensor((*self.shape[:dim], outer, inner, *self.shape[dim + 1 :]), self.dtype, tuple(pieces))

    def flatten(self, dim: int) -> LazyTensor:
        """Axes ``dim`` and ``dim + 1`` as one, as ``torch.flatten``."""
        outer, inner = self.shape[dim : dim + 2]
        pieces = [part for piece in self.pieces for part in flatten_piece(piece, dim, inner)]
        return LazyTensor((*self.shape[:dim], outer * inner, *self.shape[dim + 2 :]), self.dtype, tuple(pieces))

    def shaped(self, shape: Sequence[int]) -> LazyTensor:
        """A tensor of one axis with another shape of as many elements, as ``torch.reshape``."""
        box = tuple(shape)
        if len(self.shape) != 1 or self.numel != prod(box):
            raise ValueError(f"{self.shape} has not the elements of {box}, or more than one axis")
        if not self.pieces:
            return LazyTensor(box, self.dtype, ())
        if not box:
            (piece,) = self.pieces
            return LazyTensor((), self.dtype, (piece.at((), (), tuple(view.strided(()) for view in piece.views)),))
        tensor = self
        for axis, size in enumerate(box[:-1]):
            tensor = tensor.unflatten(axis, size, tensor.shape[axis] // size)
        return tensor

    def repeat_row(self, row: int, times: int) -> LazyTensor:
        """``times`` copies of one row of axis 0, marked as fill: the proof of coverage does not count them."""
        pieces = []
        for piece in self.slice(0, row, row + 1).pieces:
            views = tuple(view.strided((0, *view.strides[1:])) for view in piece.views)
            pieces.append(Piece(piece.start, (times, *piece.shape[1:]), views, True, piece.divisor))
        return LazyTensor((times, *self.shape[1:]), self.dtype, tuple(pieces))

    def cast(self, dtype: DType) -> LazyTensor:
        """The same elements as ``dtype``, rounded once; types that are not floating stay as they are."""
        if any(view.dtype != self.dtype for piece in self.pieces for view in piece.views):
            raise ValueError(f"already cast to {self.dtype}: a second cast would round otherwise than the first")
        return replace(self, dtype=dtype) if self.dtype.is_floating and dtype.is_floating else self

    def as_stored(self) -> LazyTensor:
        """The same elements as they are stored, without a cast; unchanged if they are stored in several dtypes."""
        stored = {view.dtype for piece in self.pieces for view in piece.views}
        return replace(self, dtype=stored.pop()) if len(stored) == 1 else self

    def coalesced(self) -> LazyTensor:
        """The same tensor in as few pieces as neighbouring boxes allow."""
        if len(self.pieces) < 2:
            return self
        pieces = list(self.pieces)
        if len({view.storage for piece in pieces for view in piece.views[:1]}) < len(pieces):
            for dim in reversed(range(len(self.shape))):
                pieces = merge_along(pieces, dim)
        return replace(self, pieces=tuple(sorted(pieces, key=lambda piece: piece.start)))

    # -- reading ---------------------------------------------------------------------------------------------------

    def numpy(self) -> NDArray:
        """The elements: mapped and read-only if they are one stored view of this dtype, else a new array.

        As with every map, a file that is made shorter while the array is in use, or a disk that fails, is a SIGBUS.

        Raises:
            StorageError: the file is shorter than when it was opened.
        """
        import numpy as np

        if len(self.pieces) == 1:
            (piece,) = self.pieces
            if piece.is_stored and piece.views[0].dtype == self.dtype:
                return piece.views[0].open(piece.shape)
        result = np.empty(self.shape, self.dtype.numpy)
        for piece in self.pieces:
            box = tuple(slice(a, a + n) for a, n in zip(piece.start, piece.shape, strict=True))
            target = result[box] if box else result
            if piece.views:
                cast_into(combined([view.open(piece.shape) for view in piece.views], piece.divisor), target)
            else:
                target[...] = 0
        return result

    def torch(self) -> torch.Tensor:
        """The elements as a torch tensor, sharing memory with :meth:`numpy`'s array. Do not write to it."""
        import warnings

        import numpy as np
        import torch

        array = self.numpy()
        with warnings.catch_warnings():
            # The array is a read-only map; torch has no read-only tensors and warns of that once a process.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            if self.dtype.name in _NOT_IN_NUMPY:
                carrier = array.view({1: np.uint8, 2: np.int16}[self.dtype.itemsize])
                return torch.from_numpy(carrier).view(getattr(torch, self.dtype.name))
            return torch.from_numpy(array)


_NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def combined(arrays: Sequence[NDArray], divisor: int) -> NDArray:
    """The element-wise sum divided by ``divisor``, in double precision; one array with divisor 1 is returned as is."""
    import numpy as np

    if len(arrays) == 1 and divisor == 1:
        return arrays[0]
    result = arrays[0].astype(np.float64)
    for array in arrays[1:]:
        result += array.astype(np.float64)
    result /= divisor
    return result


def concat(tensors: Sequence[LazyTensor], dim: int, dtype: DType | None = None) -> LazyTensor:
    """Tensors side by side along ``dim``; all other sizes must agree.

    The dtypes must agree too, unless ``dtype`` says that of the result: then each piece is cast to it when it is read.
    """
    first = tensors[0] if dtype is None else replace(tensors[0], dtype=dtype)
    if not 0 <= dim < len(first.shape):
        raise IndexError(f"axis {dim} of {first.shape}")
    pieces: list[Piece] = []
    length = 0
    for tensor in tensors:
        alike = dtype is not None or tensor.dtype == first.dtype
        if not alike or put(tensor.shape, dim, 0) != put(first.shape, dim, 0):
            raise ValueError(f"cannot join {tensor.shape} {tensor.dtype} to {first.shape} {first.dtype} on axis {dim}")
        pieces += [p.at(put(p.start, dim, p.start[dim] + length), p.shape, p.views) for p in tensor.pieces]
        length += tensor.shape[dim]
    return LazyTensor(put(first.shape, dim, length), first.dtype, tuple(pieces))


def mean(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """The element-wise mean of tensors that are each one stored view of the same shape."""
    return _divided(total(tensors), len(tensors))


def total(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """The element-wise sum of tensors that are each one stored view of the same shape, rounded once.

    The sum of one tensor is the tensor itself.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first
    alike = all(t.shape == first.shape and t.dtype == first.dtype and len(t.pieces) == 1 for t in tensors)
    if not alike or not all(t.pieces[0].is_stored for t in tensors):
        raise ValueError("a sum needs whole stored tensors of one shape and dtype")
    views = tuple(t.pieces[0].views[0] for t in tensors)
    return replace(first, pieces=(replace(first.pieces[0], views=views),))


def share(tensor: LazyTensor, count: int) -> LazyTensor:
    """Each element divided by ``count``: ``count`` such shares add up to the tensor, up to rounding in its type.

    If ``count`` is a power of two the sum is exact, except where a share is subnormal.
    """
    if count > 1 and not tensor.dtype.is_floating:
        raise ValueError(f"whole numbers ({tensor.dtype}) have no shares")
    return _divided(tensor, count)


def _divided(tensor: LazyTensor, divisor: int) -> LazyTensor:
    if divisor == 1:
        return tensor
    return replace(tensor, pieces=tuple(replace(piece, divisor=piece.divisor * divisor) for piece in tensor.pieces))
