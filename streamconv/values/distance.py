"""Which elements of two arrays differ, and by how much."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["bits_differ", "distance", "numbers", "numbers_differ"]

NDArray = npt.NDArray[Any]


def bits_differ(left: NDArray, right: NDArray) -> NDArray | None:
    """Which elements of two arrays of one shape and dtype differ in any bit; None if none does."""
    size = left.dtype.itemsize
    raw = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (left, right)]
    if np.array_equal(raw[0], raw[1]):
        return None
    differs: NDArray = (raw[0] != raw[1]).reshape(-1, size).any(axis=1).reshape(left.shape)
    return differs


def numbers(array: NDArray) -> NDArray:
    """An array in double precision, to calculate with; complex arrays as they are."""
    return array if np.issubdtype(array.dtype, np.complexfloating) else array.astype(np.float64)


def numbers_differ(left: NDArray, right: NDArray) -> NDArray | None:
    """Which elements of two arrays of one shape differ in value, whatever their dtypes; None if none does.

    Two NaNs are equal, and so are the two zeros.
    """
    values = numbers(left), numbers(right)
    differs: NDArray = (values[0] != values[1]) & ~(np.isnan(values[0]) & np.isnan(values[1]))
    return differs if differs.any() else None


def distance(left: NDArray, right: NDArray) -> tuple[float, float]:
    """(largest distance, largest distance relative to the larger of the two) of :func:`numbers`.

    Equal infinities are 0 apart, and so are two NaNs; a number is infinitely far from a NaN.
    """
    apart = np.abs(left - right)
    apart[left == right] = 0.0
    apart[np.isnan(left) & np.isnan(right)] = 0.0
    apart[np.isnan(apart)] = math.inf
    size = np.maximum(np.abs(left), np.abs(right))
    finite = np.isfinite(apart) & (size > 0)
    relative = np.max(apart[finite] / size[finite], initial=0.0)
    return float(apart.max(initial=0.0)), math.inf if np.isinf(apart).any() else float(relative)
