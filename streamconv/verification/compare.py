"""Compare the tensors of two checkpoints, streamed; under canonical names if both are translated models.

Both sides are opened anew. The plan that made one from the other is not used: each side's own format identifies its
shards, and its family joins them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.core.dtypes import DType, cast_into
from streamconv.core.errors import DifferenceError
from streamconv.core.lazy import LazyTensor
from streamconv.core.views import put
from streamconv.io.checksums import SourceChecksums
from streamconv.values.distance import bits_differ, distance, numbers, numbers_differ
from streamconv.values.sweep import Part, SweepSettings, sweep
from streamconv.verification.comparison import Comparison, ShapeDifference, TensorPlace, ValueDifference
from streamconv.verification.side import Copy, Side
from streamconv.verification.zeros import without_zeros

__all__ = ["compare"]

NDArray = npt.NDArray[Any]
_CHUNK = 1 << 16


def compare(
    a: Side,
    b: Side,
    settings: SweepSettings,
    *,
    cast: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two sides, every element of every tensor that both have.

    Args:
        a: one side.
        b: the other.
        settings: from :func:`streamconv.values.sweep.fit_sweep` with two sides.
        cast: True if ``b`` was made from ``a``: where dtypes differ, ``a``'s values are cast to ``b``'s as by a
            conversion, and bits are compared. Otherwise values are compared as numbers, and copies of replicated
            parameters are compared rank by rank too.
        progress: called with (bytes done, bytes in all).

    Raises:
        DamagedError: a record is not what its file says.
        StorageError: the system refused to read, or a file has become shorter.
    """
    result = Comparison(a, b)
    only_a, only_b = ([name for name in x.tensors if name not in y.tensors] for x, y in ((a, b), (b, a)))
    result.only_a, zeros_a = without_zeros(only_a, a, b, ("a", "b"))
    result.only_b, zeros_b = without_zeros(only_b, b, a, ("b", "a"))
    result.notes += [*zeros_a, *zeros_b]
    pairs: dict[str, tuple[LazyTensor, LazyTensor]] = {}
    for name, left in a.tensors.items():
        right = b.tensors.get(name)
        if right is None:
            continue
        left, right = _same_rows(name, left, right, result, padding=not cast)
        if left.shape != right.shape:
            result.shapes.append(ShapeDifference(name, str(list(left.shape)), str(list(right.shape))))
            continue
        if left.dtype != right.dtype:
            result.dtypes.append(ShapeDifference(name, str(left.dtype), str(right.dtype)))
        pairs[name] = left, right
    result.compared = len(pairs)
    if not cast:
        pairs |= {name: pair for name, pair in _copies(a, b) if pair[0].shape == pair[1].shape}
    result.nbytes = sum(tensor.nbytes for pair in pairs.values() for tensor in pair)
    results = sweep(list(pairs.values()), _Look(list(pairs.values()), cast), settings, progress, SourceChecksums())
    for (name, pair), parts in zip(pairs.items(), results, strict=True):
        difference = _joined(name, pair, [part for part in parts if part is not None])
        if difference is not None:
            result.values.append(difference)
    return result


def _copies(a: Side, b: Side) -> Iterator[tuple[str, tuple[LazyTensor, LazyTensor]]]:
    """Pairs of a copy on one side and its counterpart: the other side's copy of that rank, else the parameter."""
    for name in dict.fromkeys((*a.copies, *b.copies)):
        left, right = a.copies.get(name), b.copies.get(name)
        if left is not None and right is not None:
            yield name, (left.tensor, right.tensor)
        elif left is not None:
            yield _beside(name, left, b, "a")
        elif right is not None:
            label, pair = _beside(name, right, a, "b")
            yield label, pair[::-1]


def _beside(name: str, copy: Copy, other: Side, mine: str) -> tuple[str, tuple[LazyTensor, LazyTensor]]:
    counterpart = None if copy.name is None else other.tensors.get(copy.name)
    if counterpart is None:
        return f"{name} of {mine}, beside what it copies there", (copy.tensor, copy.original)
    return name, (copy.tensor, counterpart)


def _same_rows(
    name: str, left: LazyTensor, right: LazyTensor, result: Comparison, *, padding: bool
) -> tuple[LazyTensor, LazyTensor]:
    """Both tensors, cut to the true rows of the vocabulary if a side records their number, else to the smaller size.

    If ``padding`` is true, padding of the same size on both sides is compared too.
    """
    if name not in result.a.vocabulary and name not in result.b.vocabulary:
        return left, right
    if not left.shape or not right.shape or (padding and left.shape[0] == right.shape[0]):
        return left, right
    least = min(left.shape[0], right.shape[0])
    known = [size for size in (result.a.vocab_size, result.b.vocab_size) if size is not None]
    rows = min(known, default=least)
    if rows > least or rows == left.shape[0] == right.shape[0]:
        return left, right  # nothing is padding, or true rows are missing on one side: shapes differ
    words = f"{rows} true rows" if known else f"the {rows} rows that both have (the true size is unknown)"
    sizes = f"{left.shape[0]} rows against {right.shape[0]}, padded differently"
    if left.shape[0] == right.shape[0]:
        sizes = f"{least} rows on both sides, {least - rows} of them padding"
    result.notes.append(f"{name}: {sizes}; compared {words}")
    return left.slice(0, 0, rows), right.slice(0, 0, rows)


@dataclass(frozen=True, slots=True)
class _Difference:
    elements: int
    max_abs: float
    max_rel: float
    first: tuple[int, ...]
    a: float | None
    b: float | None
    rounds: tuple[bool, bool] = (False, False)


class _Look:
    """Compares one part of two tensors; None if it is equal."""

    def __init__(self, pairs: Sequence[tuple[LazyTensor, LazyTensor]], cast: bool) -> None:
        self.cast = cast
        # Arrays may have another dtype than their tensor: a mean of copies is in double precision.
        self.types: list[tuple[DType, DType]] = [(left.dtype, right.dtype) for left, right in pairs]

    def __call__(self, part: Part) -> _Difference | None:
        boxes = _boxes((0,) * len(part.start), part.arrays[0].shape)
        # Signalling NaNs, infinities that cancel, and overflow are expected here.
        with np.errstate(invalid="ignore", over="ignore"):
            differences = [
                difference for start, shape in boxes if (difference := self._box(part, start, shape)) is not None
            ]
        return _together(differences) if differences else None

    def _box(self, part: Part, start: tuple[int, ...], shape: tuple[int, ...]) -> _Difference | None:
        box = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
        left, right = (array[box] if box else array for array in part.arrays)
        meant = self.types[part.item]
        # Cast in one step: a mean in double precision is rounded once, as by a conversion.
        left, right = _as(left, meant[self.cast]), _as(right, meant[1])
        differs = (bits_differ if left.dtype == right.dtype else numbers_differ)(left, right)
        if differs is None:
            return None
        where = np.argwhere(differs)[0]
        first = tuple(int(index) for index in where)
        values = [numbers(array[differs]) for array in (left, right)]
        largest, relative = distance(*values)
        there = tuple(map(sum, zip(part.start, start, first, strict=True)))
        rounds = self._rounds(part.item, *(array[box] if box else array for array in part.arrays))
        sides = _number(left[first]), _number(right[first])
        return _Difference(int(differs.sum()), largest, relative, there, *sides, rounds)

    def _rounds(self, item: int, left: NDArray, right: NDArray) -> tuple[bool, bool]:
        """Whether b has a's values as a cast to its dtype rounds them, and whether a has b's so."""
        a, b = self.types[item]
        if self.cast or a == b or not (a.is_floating and b.is_floating):
            return False, False
        return _rounds_to(_as(left, a), _as(right, b), b), _rounds_to(_as(right, b), _as(left, a), a)


def _rounds_to(array: NDArray, other: NDArray, dtype: DType) -> bool:
    """Whether ``array`` has the values of ``other`` once it is cast to its type; not if some are too large for it."""
    try:
        return bits_differ(_as(array, dtype), other) is None
    except DifferenceError:
        return False


def _boxes(start: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A box, cut into small ones: a box whose values differ needs several arrays in double precision."""
    axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
    if axis is None or math.prod(shape) <= _CHUNK:
        yield start, shape
        return
    middle = shape[axis] // 2
    for low, size in ((0, middle), (middle, shape[axis] - middle)):
        yield from _boxes(put(start, axis, start[axis] + low), put(shape, axis, size))


def _together(parts: Sequence[_Difference]) -> _Difference:
    first = min(parts, key=lambda part: part.first)
    return replace(
        first,
        elements=sum(part.elements for part in parts),
        max_abs=max(part.max_abs for part in parts),
        max_rel=max(part.max_rel for part in parts),
        rounds=(all(part.rounds[0] for part in parts), all(part.rounds[1] for part in parts)),
    )


def _as(array: NDArray, dtype: DType) -> NDArray:
    if array.dtype == dtype.numpy:
        return array
    result = np.empty(array.shape, dtype.numpy)
    cast_into(array, result)
    return result


def _number(value: Any) -> float | None:
    return None if isinstance(value, complex | np.complexfloating) else float(value)


def _joined(name: str, pair: tuple[LazyTensor, LazyTensor], parts: Sequence[_Difference]) -> ValueDifference | None:
    if not parts:
        return None
    whole = _together(parts)
    places = [_place(tensor, whole.first, value) for tensor, value in zip(pair, (whole.a, whole.b), strict=True)]
    rounded = "b" if whole.rounds[0] else "a" if whole.rounds[1] else None
    numbers = whole.elements, pair[0].numel, whole.max_abs, whole.max_rel, whole.first
    return ValueDifference(name, *numbers, places[0], places[1], rounded)


def _place(tensor: LazyTensor, index: tuple[int, ...], value: float | None) -> TensorPlace:
    """The place of an element; for a mean of copies, that of the first copy."""
    for piece in tensor.pieces:
        inside = [at - start for at, start in zip(index, piece.start, strict=True)]
        if all(0 <= at < size for at, size in zip(inside, piece.shape, strict=True)):
            view = piece.views[0]
            element = view.offset + sum(at * stride for at, stride in zip(inside, view.strides, strict=True))
            offset = view.storage.offset + element * view.dtype.itemsize
            return TensorPlace(value, str(view.storage.path), offset)
    raise AssertionError(f"no piece of {tensor.shape} has the element {index}")
