"""Strided views of stored bytes, and the operations that map boxes to boxes: the parts of lazy tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamconv.core.dtypes import DType
from streamconv.core.errors import DamagedError, StorageError
from streamconv.core.identity import FileIdentity

__all__ = ["Piece", "Storage", "View", "flatten_piece", "merge_along", "put", "unflatten_piece"]

if TYPE_CHECKING:
    import numpy.typing as npt

    NDArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Storage:
    """One record of bytes in a file: ``nbytes`` from ``offset``; ``crc`` is its recorded CRC-32, if it has one.

    ``identity`` is the file as it was when it was opened, None for bytes whose place no metadata says.
    """

    path: Path
    offset: int
    nbytes: int
    name: str
    crc: int | None = None
    identity: FileIdentity | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a storage: ``offset`` and ``strides`` count elements of ``dtype``."""

    storage: Storage
    dtype: DType
    offset: int
    strides: tuple[int, ...]

    def moved(self, dim: int, steps: int) -> View:
        """The same view, its origin moved by ``steps`` along axis ``dim``."""
        return View(self.storage, self.dtype, self.offset + steps * self.strides[dim], self.strides) if steps else self

    def strided(self, strides: tuple[int, ...]) -> View:
        """The same origin with other strides."""
        return View(self.storage, self.dtype, self.offset, strides)

    def span(self, shape: Sequence[int]) -> tuple[int, int]:
        """(first byte in the storage, bytes from there to the end of the last element) of a box, not empty."""
        size = self.dtype.itemsize
        return self.offset * size, (sum(map(mul, shape, self.strides)) - sum(self.strides) + 1) * size

    def open(self, shape: Sequence[int]) -> NDArray:
        """The elements of a box of ``shape``, mapped and read-only.

        Raises:
            DamagedError: the file is gone, or was changed after it was opened.
            StorageError: the file has become shorter than the box needs, or the system refused.
        """
        import numpy as np

        if prod(shape) == 0:
            return np.empty(tuple(shape), self.dtype.numpy)
        path = self.storage.path
        first, extent = self.span(shape)
        start = self.storage.offset + first
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise DamagedError("the file is gone since it was opened", where=path) from error
        except OSError as error:
            raise StorageError(f"cannot find the file: {error.strerror}", where=path) from error
        if start + extent > status.st_size:
            raise StorageError(
                f"{self.storage.name}: the file ends before byte {start + extent}, and was longer when opened",
                where=path,
            )
        if self.storage.identity is not None and not self.storage.identity.matches(status):
            raise DamagedError("the file was changed after it was opened", where=path, remedy="open it again")
        flat = np.memmap(path, np.uint8, "r", start, (extent,))
        box: NDArray = np.ndarray(
            tuple(shape), self.dtype.numpy, flat, 0, tuple(s * self.dtype.itemsize for s in self.strides)
        )
        return box


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, filled with the element-wise sum of ``views``, divided by ``divisor``.

    Nearly always there is one view and no division. Without views the box is zeros, which are stored nowhere.
    ``fill`` marks rows that were added as padding.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    views: tuple[View, ...]
    fill: bool = False
    divisor: int = 1

    @property
    def numel(self) -> int:
        """Elements in the box."""
        return prod(self.shape)

    @property
    def is_stored(self) -> bool:
        """Whether its elements are stored as they are, not computed."""
        return len(self.views) == 1 and self.divisor == 1

    def at(self, start: tuple[int, ...], shape: tuple[int, ...], views: tuple[View, ...]) -> Piece:
        """A piece with another box and other views, and the same ``fill`` and ``divisor``."""
        return Piece(start, shape, views, self.fill, self.divisor)


def put(values: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    """``values`` with ``value`` at index ``dim``."""
    return (*values[:dim], value, *values[dim + 1 :])


def unflatten_piece(piece: Piece, dim: int, inner: int) -> Iterable[Piece]:
    """Cut a piece at multiples of ``inner`` so that each part is a box of the two new axes."""
    position, end = piece.start[dim], piece.start[dim] + piece.shape[dim]
    while position < end:
        row, column = divmod(position, inner)
        whole = (end - position) // inner if column == 0 else 0
        rows, columns = (whole, inner) if whole else (1, min(inner - column, end - position))
        views = []
        for view in piece.views:
            stride = view.strides[dim]
            strides = (*view.strides[:dim], stride * inner, stride, *view.strides[dim + 1 :])
            views.append(view.moved(dim, position - piece.start[dim]).strided(strides))
        yield piece.at(
            (*piece.start[:dim], row, column, *piece.start[dim + 1 :]),
            (*piece.shape[:dim], rows, columns, *piece.shape[dim + 1 :]),
            tuple(views),
        )
        position += rows * columns


def flatten_piece(piece: Piece, dim: int, inner: int) -> Iterable[Piece]:
    """Join two axes of a piece: one piece if the stored strides allow it, else one for each row."""
    (row, column), (rows, columns) = piece.start[dim : dim + 2], piece.shape[dim : dim + 2]
    pairs = [view.strides[dim : dim + 2] for view in piece.views]
    joins = columns == inner and all(rows == 1 or inner == 1 or outer == inner * step for outer, step in pairs)
    if not joins and rows > 1:
        for index in range(rows):
            single_row = piece.at(
                put(piece.start, dim, row + index),
                put(piece.shape, dim, 1),
                tuple(view.moved(dim, index) for view in piece.views),
            )
            yield from flatten_piece(single_row, dim, inner)
        return
    views = tuple(
        v.strided((*v.strides[:dim], outer if inner == 1 else step, *v.strides[dim + 2 :]))
        for v, (outer, step) in zip(piece.views, pairs, strict=True)
    )
    yield piece.at(
        (*piece.start[:dim], row * inner + column, *piece.start[dim + 2 :]),
        (*piece.shape[:dim], rows * columns, *piece.shape[dim + 2 :]),
        views,
    )


def merge_along(pieces: list[Piece], dim: int) -> list[Piece]:
    """The pieces, with neighbours along ``dim`` joined."""
    if len(pieces) < 2:
        return pieces
    merged: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (put(p.start, dim, 0), put(p.shape, dim, 0), p.start[dim])):
        joined = _joined(merged[-1], piece, dim) if merged else None
        if joined is None:
            merged.append(piece)
        else:
            merged[-1] = joined
    return merged


def _joined(left: Piece, right: Piece, dim: int) -> Piece | None:
    """The two pieces as one box, if they are neighbours on ``dim`` in the tensor and evenly spaced in storage."""
    if (left.fill, left.divisor, len(left.views)) != (right.fill, right.divisor, len(right.views)):
        return None
    if put(left.start, dim, left.start[dim] + left.shape[dim]) != right.start:
        return None
    if put(left.shape, dim, 0) != put(right.shape, dim, 0):
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
        same = a.storage is b.storage or a.storage == b.storage
        if not same or a.dtype != b.dtype or rest or step < 0 or not known <= {step} or not others:
            return None
        views.append(a.strided(put(a.strides, dim, step)))
    return left.at(left.start, put(left.shape, dim, left.shape[dim] + right.shape[dim]), tuple(views))
