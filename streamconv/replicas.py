"""Compare the copies of replicated parameters, under the same memory bound as the conversion.

Copies drift apart when a training run fails to keep them equal (BLOOM's norms did). The largest difference is reported,
and the policy ``fail`` stops before the first write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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

    Raises:
        DifferenceError: there is one, and the policy is ``fail``.
        DamagedError, StorageError: a file cannot be read.
    """
    files = SourceFiles(io)
    buffers = bytearray(block), bytearray(block)
    try:
        found = [drift for replica in replicas if (drift := _compare(replica, files, buffers)) is not None]
    finally:
        files.close()
    if found and policy == "fail":
        worst = max(found, key=lambda drift: drift.largest)
        raise DifferenceError(
            f"{len(found)} replicated parameters differ between tensor-parallel ranks; the most {worst.name}, "
            f"by {worst.largest:g} in {worst.elements} elements",
            remedy="choose --replicated first or --replicated mean",
        )
    return found


def _compare(replica: Replica, files: SourceFiles, buffers: tuple[bytearray, bytearray]) -> Drift | None:
    first = replica.copies[0]
    ranks, most, largest = [], 0, 0.0
    for rank, copy in enumerate(replica.copies[1:], start=1):
        elements, distance = _difference(first, copy, files, buffers)
        if elements:
            ranks.append(rank)
            most, largest = max(most, elements), max(largest, distance)
    return Drift(replica.name, tuple(ranks), most, largest) if ranks else None


def _difference(
    first: LazyTensor, second: LazyTensor, files: SourceFiles, buffers: tuple[bytearray, bytearray]
) -> tuple[int, float]:
    """(elements whose bits differ, largest difference in value) of two stored tensors of one shape and dtype."""
    size = first.dtype.itemsize
    if not (_is_dense(first) and first.pieces[0].views[0].strides == second.pieces[0].views[0].strides):
        return _differing(first.numpy(), second.numpy())
    elements, largest = 0, 0.0
    # Whole elements only, so that a value is never cut in two.
    step = len(buffers[0]) // size * size
    sides = [(tensor.pieces[0].views[0], buffer) for tensor, buffer in zip((first, second), buffers, strict=True)]
    for start in range(0, first.nbytes, step):
        count = min(step, first.nbytes - start)
        for view, buffer in sides:
            offset = view.storage.offset + view.offset * size + start
            files.read_into(view.storage.path, offset, memoryview(buffer)[:count])
        found = _differing(*(np.frombuffer(buffer, np.uint8, count).view(first.dtype.numpy) for _, buffer in sides))
        elements, largest = elements + found[0], max(largest, found[1])
    return elements, largest


def _differing(first: NDArray, second: NDArray) -> tuple[int, float]:
    raw = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second)]
    if np.array_equal(raw[0], raw[1]):
        return 0, 0.0
    where = (raw[0] != raw[1]).reshape(-1, first.itemsize).any(axis=1)
    values = [array.reshape(-1)[where].astype(np.float64) for array in (first, second)]
    return int(where.sum()), float(np.max(np.abs(values[0] - values[1])))


def _is_dense(tensor: LazyTensor) -> bool:
    """Whether a stored tensor's elements fill one run of bytes, in whatever order."""
    step = 1
    for size, stride in sorted(zip(tensor.shape, tensor.pieces[0].views[0].strides, strict=True), key=lambda p: p[1]):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
