"""Read lazy tensors part by part into reused buffers, for statistics and comparisons.

A part is small enough that its elements fit into a buffer, and so does the stretch of file that each of its pieces lies
in. So a row-parallel shard is read in long runs and taken apart in memory, whatever the other side's layout is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.core.lazy import LazyTensor, View, combined
from streamconv.io.checksums import SourceChecksums, crc32
from streamconv.io.direct import PAGE, new_buffer
from streamconv.io.source import SourceFiles
from streamconv.io.unread import Reader

__all__ = ["TensorReader", "parts"]

NDArray = npt.NDArray[Any]


def parts(tensors: Sequence[LazyTensor], nbytes: int) -> Iterator[tuple[tuple[int, ...], tuple[LazyTensor, ...]]]:
    """The same boxes of tensors of one shape, each box small enough for a :class:`TensorReader` of ``nbytes``.

    Yields:
        (where the box begins, the box of each tensor), in an order that covers each element once.
    """
    yield from _halved((0,) * len(tensors[0].shape), tuple(tensors), nbytes)


def _halved(
    start: tuple[int, ...], tensors: tuple[LazyTensor, ...], nbytes: int
) -> Iterator[tuple[tuple[int, ...], tuple[LazyTensor, ...]]]:
    shape = tensors[0].shape
    if 0 in shape:
        return
    needs = [_need(tensor) for tensor in tensors]
    worst = max(range(len(tensors)), key=lambda number: needs[number][0])
    need, axis = needs[worst]
    if need <= nbytes or all(size == 1 for size in shape):
        yield start, tensors
        return
    middle = shape[axis] // 2
    for low, high in ((0, middle), (middle, shape[axis])):
        corner = (*start[:axis], start[axis] + low, *start[axis + 1 :])
        yield from _halved(corner, tuple(tensor.slice(axis, low, high) for tensor in tensors), nbytes)


def _need(tensor: LazyTensor) -> tuple[int, int]:
    """(bytes of buffer that reading a tensor takes, the axis along which to cut it if that is too much)."""
    spans = [(view.span(piece.shape)[1], piece, view) for piece in tensor.pieces for view in piece.views]
    if not spans:
        return tensor.nbytes, max(range(len(tensor.shape)), key=tensor.shape.__getitem__, default=0)
    span, piece, view = max(spans, key=lambda entry: entry[0])
    steps = [(size - 1) * stride for size, stride in zip(piece.shape, view.strides, strict=True)]
    if span > tensor.nbytes or len(spans) == len(tensor.pieces) == 1:
        axis = max(range(len(steps)), key=lambda axis: (steps[axis], piece.shape[axis]), default=0)
    else:
        axis = next((axis for axis, size in enumerate(tensor.shape) if size > 1), 0)
    return max(span, tensor.nbytes), axis


class TensorReader:
    """Two buffers and the open files of one thread. An array from :meth:`read` is valid until the next call."""

    def __init__(self, io: str, nbytes: int, checksums: SourceChecksums | None = None) -> None:
        """With ``checksums``, the bytes that are read are compared with the recorded CRC-32s."""
        self.files, self.checksums = SourceFiles(io), checksums
        self._stretch = new_buffer(nbytes + 2 * PAGE)
        self._whole = np.empty(nbytes, np.uint8)

    def read(self, tensor: LazyTensor) -> NDArray:
        """The elements of a tensor that is not empty, as :func:`parts` cuts it, in the type that is stored.

        Zeros that are stored nowhere have the tensor's own type, and what is stored in several types is in double
        precision.

        Raises:
            DamagedError: a record's CRC-32 is not the recorded one.
            StorageError: the system refused, or a file has become shorter.
        """
        if len(tensor.pieces) == 1 and tensor.pieces[0].is_stored:
            return self._view(tensor.pieces[0].views[0], tensor.pieces[0].shape)
        stored, *others = {view.dtype for piece in tensor.pieces for view in piece.views} or {tensor.dtype}
        computed = bool(others) or any(piece.views and not piece.is_stored for piece in tensor.pieces)
        dtype = np.dtype(np.float64) if computed else stored.numpy
        whole: NDArray = (
            np.empty(tensor.shape, dtype)
            if computed
            else np.ndarray(tensor.shape, dtype, self._whole[: tensor.numel * dtype.itemsize].data)
        )
        for piece in tensor.pieces:
            box = tuple(slice(first, first + size) for first, size in zip(piece.start, piece.shape, strict=True))
            if piece.is_stored:
                whole[box] = self._view(piece.views[0], piece.shape)
            elif not piece.views:
                whole[box] = 0
            else:
                whole[box] = combined([self._view(view, piece.shape).copy() for view in piece.views], piece.divisor)
        return whole

    def _view(self, view: View, shape: Sequence[int]) -> NDArray:
        first, nbytes = view.span(shape)
        offset = view.storage.offset + first
        position = offset % PAGE
        self.files.read_into(view.storage.path, offset, self._stretch, position, nbytes)
        if self.checksums is not None:
            stretch = memoryview(self._stretch)[position : position + nbytes]
            self.checksums.add(view.storage, first, nbytes, crc32(stretch))
        strides = tuple(stride * view.dtype.itemsize for stride in view.strides)
        box: NDArray = np.ndarray(tuple(shape), view.dtype.numpy, self._stretch, position, strides)
        return box

    @property
    def own(self) -> Reader:
        """Its files and its buffer, for use between two calls of :meth:`read`."""
        return self.files, self._stretch

    def close(self) -> None:
        """Close the files."""
        self.files.close()
