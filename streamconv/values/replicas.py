"""Compare the copies of replicated parameters, under the same memory bound as the conversion.

Copies drift apart when a training run fails to keep them equal (BLOOM's norms did). The largest difference is reported,
and the policy ``fail`` stops before the first write.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.core.errors import DifferenceError
from streamconv.core.lazy import LazyTensor
from streamconv.core.replica import Replica
from streamconv.io.checksums import SourceChecksums
from streamconv.io.unread import read_unread
from streamconv.memory.fit import largest_block
from streamconv.values.distance import bits_differ, distance, numbers, numbers_differ
from streamconv.values.reader import TensorReader, parts

__all__ = ["Drift", "compare_replicas"]

NDArray = npt.NDArray[Any]
_SMALLEST_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Drift:
    """A parameter whose copies differ: on which ranks, in how many elements at most, and by how much at most.

    If the copies are not those of ranks, ``ranks`` is empty, and ``original`` names what the parameter differs from.
    """

    name: str
    ranks: tuple[int, ...]
    elements: int
    largest: float
    original: str | None = None


def compare_replicas(
    replicas: Sequence[Replica], policy: str, io: str, block: int, read_later: SourceChecksums | None = None
) -> list[Drift]:
    """The parameters whose copies differ from the first one in any bit.

    Args:
        replicas: what to compare.
        policy: ``fail`` refuses a difference.
        io: ``direct`` or ``pread``.
        block: bytes that the comparison may take.
        read_later: the checksums of a reader of the same source, who completes those of records that are read in part;
            None: they are completed here.

    Raises:
        DifferenceError: copies differ, and the policy is ``fail`` or the copies must be equal.
        DamagedError, StorageError: a file cannot be read, or a record's CRC is not the recorded one.
    """
    checksums, nbytes = read_later or SourceChecksums(), largest_block(block, _needed_nbytes, _SMALLEST_BLOCK, block)
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(TensorReader(io, nbytes, checksums))) for _ in range(2)]
        comparison = _Comparison(readers, nbytes)
        drifts = []
        for replica in replicas:
            drift = comparison.drift(replica)
            if drift is not None and replica.must_equal:
                raise DifferenceError(
                    f"{drift.name} differs from {drift.original} in {drift.elements} elements, by at most "
                    f"{drift.largest:g}, though the configuration says that they are one",
                    remedy=replica.remedy,
                )
            drifts += [drift] if drift is not None else []
        if read_later is None:
            read_unread(checksums, [reader.own for reader in readers])
    if drifts and policy == "fail":
        worst = max(drifts, key=lambda drift: drift.largest)
        raise DifferenceError(
            f"{len(drifts)} replicated parameters differ from their first copy; the most {worst.name}, "
            f"by {worst.largest:g} in {worst.elements} elements",
            remedy="choose --replicated first or --replicated mean",
        )
    return drifts


def _needed_nbytes(block: int) -> int:
    # Differing elements of both copies become doubles, and so do the results computed from them.
    return 32 * block


class _Comparison:
    """Two readers, and the bytes of a tensor that each reads at a time."""

    def __init__(self, readers: Sequence[TensorReader], nbytes: int) -> None:
        self.readers, self.nbytes = readers, nbytes

    def drift(self, replica: Replica) -> Drift | None:
        first = replica.copies[0]
        ranks, most, largest = [], 0, 0.0
        for rank, copy in enumerate(replica.copies[1:], start=1):
            elements, distance = self.difference(first, copy)
            if elements:
                ranks.append(rank)
                most, largest = max(most, elements), max(largest, distance)
        if not ranks:
            return None
        return Drift(replica.name, () if replica.original else tuple(ranks), most, largest, replica.original)

    def difference(self, first: LazyTensor, second: LazyTensor) -> tuple[int, float]:
        """(elements that differ, largest difference in value) of two stored tensors of one shape.

        Of one dtype their bits are compared, of unlike dtypes their values, in double precision, which is exact.
        """
        elements, largest = 0, 0.0
        for _, part in parts((first, second), self.nbytes):
            arrays = [reader.read(tensor) for reader, tensor in zip(self.readers, part, strict=True)]
            count, distance = _differing(arrays[0], arrays[1])
            elements, largest = elements + count, max(largest, distance)
        return elements, largest


def _differing(first: NDArray, second: NDArray) -> tuple[int, float]:
    differs = (bits_differ if first.dtype == second.dtype else numbers_differ)(first, second)
    if differs is None:
        return 0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        largest, _ = distance(numbers(first[differs]), numbers(second[differs]))
    return int(differs.sum()), largest
