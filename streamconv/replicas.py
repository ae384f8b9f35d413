"""Compare the copies of replicated parameters, under the same memory bound as the conversion.

Copies drift apart when a training run fails to keep them equal (BLOOM's norms did). The largest difference is reported,
and the policy ``fail`` stops before the first write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.checksums import SourceChecksums, crc32
from streamconv.errors import DifferenceError
from streamconv.files.source_io import SourceFiles
from streamconv.lazy import LazyTensor
from streamconv.plans import Replica

__all__ = ["Drift", "compare_replicas"]

NDArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Drift:
    """A parameter whose copies differ: on which ranks, in how many elements at most, and by how much at most."""

    name: str
    ranks: tuple[int, ...]
    elements: int
    largest: float


def compare_replicas(replicas: Sequence[Replica], policy: str, io: str, block: int) -> list[Drift]:
    """The parameters whose copies are not bit for bit the first rank's.

    Args:
        replicas: what to compare.
        policy: ``fail`` refuses a difference.
        io: ``pread`` or ``mmap``.
        block: bytes that the comparison may take.

    Raises:
        DifferenceError: there is one, and the policy is ``fail``.
        DamagedError, StorageError: a file cannot be read, or a record's CRC is not the recorded one.
    """
    with closing(SourceFiles(io)) as files:
        comparison = _Comparison(files, block)
        found = [drift for replica in replicas if (drift := comparison.drift(replica)) is not None]
    if found and policy == "fail":
        worst = max(found, key=lambda drift: drift.largest)
        raise DifferenceError(
            f"{len(found)} replicated parameters differ between tensor-parallel ranks; the most {worst.name}, "
            f"by {worst.largest:g} in {worst.elements} elements",
            remedy="choose --replicated first or --replicated mean",
        )
    return found


class _Comparison:
    """Two buffers, and the checksums of what passes through them.

    Values are compared in double precision, several arrays of it: so a buffer is a small part of the block.
    """

    def __init__(self, files: SourceFiles, block: int) -> None:
        self.files, self.checksums = files, SourceChecksums()
        self.buffers = tuple(bytearray(max(4096, block // 32)) for _ in range(2))

    def drift(self, replica: Replica) -> Drift | None:
        first = replica.copies[0]
        ranks, most, largest = [], 0, 0.0
        for rank, copy in enumerate(replica.copies[1:], start=1):
            elements, distance = self.difference(first, copy)
            if elements:
                ranks.append(rank)
                most, largest = max(most, elements), max(largest, distance)
        return Drift(replica.name, tuple(ranks), most, largest) if ranks else None

    def difference(self, first: LazyTensor, second: LazyTensor) -> tuple[int, float]:
        """(elements whose bits differ, largest difference in value) of two stored tensors of one shape and dtype."""
        elements, largest = 0, 0.0
        for box, part in _parts(first, second, len(self.buffers[0])):
            arrays = [self.read(tensor, box, buffer) for tensor, buffer in zip(part, self.buffers, strict=True)]
            count, distance = _differing(arrays[0], arrays[1])
            elements, largest = elements + count, max(largest, distance)
        return elements, largest

    def read(self, tensor: LazyTensor, shape: Sequence[int], buffer: bytearray) -> NDArray:
        """The elements of a stored tensor whose span fits the buffer."""
        view = tensor.pieces[0].views[0]
        start, nbytes = view.span(shape)
        self.files.read_into(view.storage.path, view.storage.offset + start, buffer, 0, nbytes)
        self.checksums.add(view.storage, start, nbytes, crc32(memoryview(buffer)[:nbytes]))
        strides = tuple(stride * view.dtype.itemsize for stride in view.strides)
        box: NDArray = np.ndarray(tuple(shape), view.dtype.numpy, buffer, 0, strides)
        return box


def _parts(
    first: LazyTensor, second: LazyTensor, nbytes: int
) -> Iterator[tuple[tuple[int, ...], tuple[LazyTensor, LazyTensor]]]:
    """The two tensors halved along their longest axis until the span of each part is at most ``nbytes``."""
    if not first.numel:
        return
    if max(tensor.pieces[0].views[0].span(tensor.shape)[1] for tensor in (first, second)) <= nbytes:
        yield first.shape, (first, second)
        return
    strides = first.pieces[0].views[0].strides
    axis = max(range(len(first.shape)), key=lambda axis: (first.shape[axis] - 1) * strides[axis])
    middle = first.shape[axis] // 2
    for low, high in ((0, middle), (middle, first.shape[axis])):
        yield from _parts(first.slice(axis, low, high), second.slice(axis, low, high), nbytes)


def _differing(first: NDArray, second: NDArray) -> tuple[int, float]:
    raw = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second)]
    if np.array_equal(raw[0], raw[1]):
        return 0, 0.0
    where = (raw[0] != raw[1]).reshape(-1, first.itemsize).any(axis=1)
    values = [array.reshape(-1)[where].astype(np.float64) for array in (first, second)]
    return int(where.sum()), float(np.max(np.abs(values[0] - values[1])))
