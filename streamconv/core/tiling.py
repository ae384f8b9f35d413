"""Whether boxes tile a tensor: fill it without a gap and without an overlap.

The proof of a plan and the reader of ``.metadata`` both ask this, the one of boxes that the program made, the other of
boxes that a file claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import prod

__all__ = ["Box", "tiling_fault", "whole_box"]

Box = tuple[tuple[int, int], ...]
"""One (start, stop) for each axis."""

# How many times over the boxes are looked at where the work is bounded. A grid takes one look for each axis.
_LOOKS = 200


def tiling_fault(boxes: Sequence[Box], shape: Sequence[int], *, bounded: bool = False) -> str | None:
    """What is wrong with boxes that should tile a tensor of ``shape``; None if they do.

    They tile it if none leaves it, they have as many elements as it has, and no two overlap.

    Args:
        boxes: the boxes, in any order. One without elements counts for nothing.
        shape: sizes of the tensor's axes.
        bounded: give up on boxes in no order, which would have to be compared each with each. For boxes from a file:
            a small file must not hold the program up.
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
    """Two boxes that overlap, or that finding them would take more than ``most_looks`` looks at a box.

    Boxes are parted by cuts that go through none of them, along one axis after the other, until each part has one box.
    Where no cut is left on any axis, each box of a part is compared with each.
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
            for one, other in combinations(part, 2):
                if all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True)):
                    return f"those at {_start(one)} and {_start(other)} overlap"
            continue
        found = list(_parted(part, axis))
        parts += [(few, (axis + 1) % axes, uncut + 1 if len(found) == 1 else 0) for few in found]
    return None


def _parted(boxes: Sequence[Box], axis: int) -> Iterator[list[Box]]:
    """The boxes between cuts across an axis that go through none of them."""
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
