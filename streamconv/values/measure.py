"""Measure the values of tensors, streamed under a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.core.lazy import LazyTensor
from streamconv.values.statistics import Moments, Statistics, together
from streamconv.values.sweep import Part, SweepSettings, sweep

__all__ = ["tensor_statistics"]

NDArray = npt.NDArray[Any]
# The elements converted to double precision at a time: their temporaries stay in the processor's cache.
_CHUNK = 1 << 16
# The sum of squares around the mean is computed as a difference; that is accurate up to this ratio of the two sums.
_CANCELLED = 1e4


def tensor_statistics(
    tensors: Mapping[str, LazyTensor],
    settings: SweepSettings,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Statistics]:
    """Statistics of each tensor by name; complex ones are left out.

    Raises:
        DamagedError, StorageError: see :func:`streamconv.values.sweep.sweep`.
    """
    names = [name for name, tensor in tensors.items() if not tensor.dtype.name.startswith("complex")]
    moments = sweep([(tensors[name],) for name in names], _look, settings, progress)
    return {name: together(parts).result() for name, parts in zip(names, moments, strict=True)}


def _look(part: Part) -> Moments:
    return together(map(_moments, _chunks(part.arrays[0])))


def _chunks(array: NDArray) -> Iterator[NDArray]:
    flat = array.reshape(-1) if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK].astype(np.float64)


def _moments(values: NDArray) -> Moments:
    numel = values.size
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
        if math.isfinite(total):
            return _finite(values, total, numel, 0)
        # There is a NaN or an infinity, or the sum of float64s overflowed.
        nan = int(np.isnan(values).sum())
        kept = values[np.isfinite(values)]
        return _finite(kept, float(kept.sum()), numel, nan) if kept.size else Moments(numel=numel, nan=nan)


def _finite(values: NDArray, total: float, numel: int, nan: int) -> Moments:
    """The moments of finite values, in few passes: most of the time goes into those."""
    count = values.size
    zeros = int(np.count_nonzero(values == 0))
    least, most, mean = float(values.min()), float(values.max()), total / count
    around_zero = _square_sum(values)
    squares = around_zero - count * mean * mean
    if around_zero > _CANCELLED * squares:
        # The difference has lost digits: sum again, around the mean.
        values -= mean
        squares = _square_sum(values)
    return Moments(numel, count, zeros, nan, least, most, mean, squares)


def _square_sum(values: NDArray) -> float:
    # Not np.dot: its library starts threads of its own, whose busy waiting slows ours down.
    return float(np.einsum("i,i", values, values))
