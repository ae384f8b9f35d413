"""Prove, in numbers, that a plan reads every source element and writes every target element, each exactly once.

The proof does not trust the code that made the plan: it takes the boxes of the finished target tensors back to the
coordinates of the source tensors that they come from, and checks that the boxes tile both sides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import NamedTuple

from streamconv.core.errors import StreamconvError
from streamconv.core.lazy import LazyTensor, Piece, Storage, View
from streamconv.core.tiling import Box, tiling_fault, whole_box

__all__ = ["Coverage", "CoverageError", "SourceIndex", "boxes_in_source", "prove"]


class CoverageError(StreamconvError):
    """A plan that loses or repeats an element. It is a bug, found before the first write."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was proved: source tensors consumed whole, left out on purpose, and target tensors written once."""

    consumed: int
    left_out: int
    written: int


def boxes_in_source(piece: Piece, view: View, source: LazyTensor) -> list[Box]:
    """The boxes of ``source`` (one stored view) that a piece reads through ``view``."""
    origin = source.pieces[0].views[0]
    if view.dtype != origin.dtype:
        raise CoverageError(f"a target reads {origin.dtype} elements as {view.dtype}")
    if (view.offset, view.strides, piece.shape) == (origin.offset, origin.strides, source.shape):
        return [whole_box(source.shape)]
    strides = [stride or 1 for stride in origin.strides]
    axes = [axis for axis, size in enumerate(source.shape) if size > 1]
    axes.sort(key=origin.strides.__getitem__, reverse=True)
    steps: list[list[tuple[int, int]]] = [[] for _ in strides]
    for size, stride in zip(piece.shape, view.strides, strict=True):
        if size > 1:
            for axis in axes if stride else ():
                if stride % strides[axis] == 0:
                    steps[axis].append((stride // strides[axis], size))
                    break
            else:
                raise CoverageError(f"a view with stride {stride} of a tensor with strides {origin.strides}")
    start, rest = [0] * len(strides), view.offset - origin.offset
    for axis in axes:
        start[axis], rest = divmod(rest, strides[axis])
    return list(product(*map(_runs, start, steps)))


def _runs(start: int, steps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (start, stop) runs along one axis that nested loops, each (step, count), visit."""
    if not steps:
        return [(start, start + 1)]
    starts, length = [start], 1
    for step, count in sorted(steps):
        if step == length and len(starts) == 1:
            length *= count
        else:
            starts = [s + step * index for s in starts for index in range(count)]
    return [(s, s + length) for s in starts]


def prove(
    sources: Mapping[str, LazyTensor],
    left_out: Mapping[str, Sequence[Box] | None],
    targets: Iterable[tuple[str, LazyTensor]],
) -> Coverage:
    """Check that each source element is read once or left out on purpose, and each target element is written once.

    Args:
        sources: every parameter's shard, each one stored view, by name.
        left_out: the boxes of a source that are left out on purpose; None for the whole source.
        targets: (role, tensor) of every target tensor. Each role must read a source whole or not at all; the copy of a
            tied head has a role of its own. Repeated rows and zeros read nothing.

    Raises:
        CoverageError: an element is lost or repeated.
    """
    index = SourceIndex(sources)
    read: dict[tuple[str, str], list[Box]] = defaultdict(list)
    written = 0
    for role, tensor in targets:
        written += 1
        boxes = [tuple([(a, a + n) for a, n in zip(p.start, p.shape, strict=True)]) for p in tensor.pieces]
        if fault := tiling_fault(boxes, tensor.shape):
            raise CoverageError(
                f"target tensor of {role} {tensor.shape} would not be written exactly once (its boxes: {fault})"
            )
        for piece in tensor.pieces:
            for view in () if piece.fill else piece.views:
                name, source_boxes = index.find(piece, view)
                read[role, name] += source_boxes
    for (role, name), boxes in read.items():
        extra = left_out.get(name) or ()
        if fault := tiling_fault([*boxes, *extra], sources[name].shape):
            raise CoverageError(
                f"source tensor {name} {sources[name].shape} would not be read exactly once for {role} "
                f"(the boxes that are read or left out: {fault})"
            )
    consumed = {name for _, name in read}
    lost = [n for n, t in sources.items() if t.numel and n not in consumed and left_out.get(n, ()) is not None]
    if lost:
        raise CoverageError(
            f"{len(lost)} source tensors are neither read nor left out with a reason, the first is {lost[0]}"
        )
    return Coverage(len(consumed), len(set(sources) - consumed), written)


class _Span(NamedTuple):
    """The bytes of a storage from a source's first to behind its last, and the source's number and name."""

    start: int
    stop: int
    number: int
    name: str


class SourceIndex:
    """Finds the source tensor that a view reads."""

    def __init__(self, sources: Mapping[str, LazyTensor]) -> None:
        self.sources = sources
        spans: dict[Storage, list[_Span]] = defaultdict(list)
        for number, (name, tensor) in enumerate(sources.items()):
            for piece in tensor.pieces:
                (view,) = piece.views
                start, nbytes = view.span(tensor.shape)
                spans[view.storage].append(_Span(start, start + nbytes, number, name))
        self.by_storage = {storage: sorted(held) for storage, held in spans.items()}
        # A storage may hold every parameter of a model, so the walk back in `_holding` has to end soon.
        self.reach = {
            storage: list(accumulate((span.stop for span in held), max)) for storage, held in self.by_storage.items()
        }

    def find(self, piece: Piece, view: View) -> tuple[str, list[Box]]:
        """The name of the source tensor that contains the whole view, and the boxes of it that the view reads.

        A byte span alone does not decide: column views of one storage may interleave.
        """
        first, _ = view.span(piece.shape)
        for name in self._holding(view.storage, first):
            source = self.sources[name]
            boxes = boxes_in_source(piece, view, source)
            if all(high <= size for box in boxes for (_, high), size in zip(box, source.shape, strict=True)):
                return name, boxes
        raise CoverageError(
            f"a target reads {view.storage.name} of {view.storage.path.name} outside every source tensor"
        )

    def _holding(self, storage: Storage, place: int) -> list[str]:
        """The sources whose span has a byte of a storage, in their order."""
        held, reach = self.by_storage.get(storage, []), self.reach.get(storage, [])
        last = bisect_right(held, place, key=lambda span: span.start)
        found = []
        while last and reach[last - 1] > place:
            last -= 1
            if held[last].stop > place:
                found.append(held[last])
        return [span.name for span in sorted(found, key=lambda span: span.number)]
