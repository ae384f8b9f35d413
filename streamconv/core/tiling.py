"""Whether boxes tile a tensor: fill it without a gap and without an overlap.

The proof of a plan checks boxes that the program made; the reader of ``.metadata`` checks boxes that a file claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import prod

__all__ = ["Box", "tiling_fault", "whole_box"]

Box = tuple[tuple[int, int], ...]
"""(start, stop) on each axis."""

# The bound on the work, in looks at each box. A grid takes one look for each axis.
_LOOKS = 200


def tiling_fault(boxes: Sequence[Box], shape: Sequence[int], *, bounded: bool = False) -> str | None:
    """What is wrong with boxes that should tile a tensor of ``shape``; None if they do.

    Boxes tile a tensor if all lie inside it, no two overlap, and together they have as many elements as the tensor.

    Args:
        boxes: the boxes, in any order. An empty box overlaps nothing.
        shape: sizes of the tensor's axes.
        bounded: give up on boxes that no cut separates, since comparing all pairs takes quadratic time. For boxes from
            a file: a small file must not hold the program up.
    """
    if len(boxes) == 1 and boxes[0] == whole_box(shape):
        return None
    total, filled = 0, []
    for box in boxes:
        if len(box) != len(shape):
            return f"one at {_start(box)} has other axes"
        numel = 1
        for (start, stop), size in zip(box, shape, strict=True):
            if not 0 <= start <= stop <= size:
                return f"one of {tuple(b - a for a, b in box)} at {_start(box)} leaves it"
            numel *= stop - start
        total += numel
        if numel:
            filled.append(box)
    if total != prod(shape):
        return f"they hold {total} elements of {prod(shape)}"
    return _overlap(filled, len(shape), _LOOKS * (len(filled) + 1) if bounded else None)


def whole_box(shape: Sequence[int]) -> Box:
    """The box that is the whole tensor."""
    return tuple((0, size) for size in shape)


def _start(box: Box) -> tuple[int, ...]:
    return tuple(start for start, _ in box)


def _overlap(boxes: Sequence[Box], axes: int, most_looks: int | None) -> str | None:
    """A message that names two overlapping boxes, or says that the search takes more than ``most_looks`` looks at a
    box; None if no boxes overlap.

    The boxes are separated by cuts that cross no box, along one axis after the other, until each part has one box. If a
    part has no such cut on any axis, all pairs of its boxes are compared.
    """
    looks = 0
    parts = [(boxes, 0, 0)] if axes else []
    while parts:
        part, axis, uncut = parts.pop()
        if len(part) < 2:
            continue
        looks += len(part) if uncut < axes else len(part) ** 2
        if most_looks is not None and looks > most_looks:
            return f"{len(boxes)} in no order, too many to tell"
        if uncut == axes:
            for left, right in combinations(part, 2):
                if all(a < d and c < b for (a, b), (c, d) in zip(left, right, strict=True)):
                    return f"those at {_start(left)} and {_start(right)} overlap"
            continue
        smaller = list(_parted(part, axis))
        parts += [(group, (axis + 1) % axes, uncut + 1 if len(smaller) == 1 else 0) for group in smaller]
    return None


def _parted(boxes: Sequence[Box], axis: int) -> Iterator[list[Box]]:
    """The groups of boxes between the cuts across ``axis`` that cross no box."""
    part: list[Box] = []
    end = 0
    for box in sorted(boxes, key=lambda box: box[axis]):
        start, stop = box[axis]
        if part and start >= end:
            yield part
            part = []
        part.append(box)
        end = max(end, stop)
    yield part
