"""Tiles: the steps that jobs are cut into, and the plan of a tile's buffers.

A tile reads into an input buffer, moves boxes of elements to an output buffer, and writes from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from streamconv.core.dtypes import DType
from streamconv.core.lazy import Storage, View
from streamconv.io.direct import DIRECT_NBYTES, PAGE, Buffer, congruent, page_end

__all__ = ["Computed", "Move", "Read", "Tile", "Write", "buffer_nbytes", "placed", "plan_reads", "tile_nbytes"]


@dataclass(frozen=True, slots=True)
class Read:
    """``nbytes`` of a storage from byte ``start``, into the input buffer at ``position``.

    A long read shares its pages of the buffer with no other, and its position equals its file offset modulo a page.
    """

    storage: Storage
    start: int
    nbytes: int
    position: int


@dataclass(frozen=True, slots=True)
class Move:
    """A box of elements from the input buffer to the output buffer; strides and positions in bytes.

    The elements are the sum of the sources, divided by ``divisor``; without sources they are zeros.
    """

    shape: tuple[int, ...]
    source_dtype: DType
    sources: tuple[tuple[int, tuple[int, ...]], ...]
    target_dtype: DType
    position: int
    strides: tuple[int, ...]
    divisor: int = 1


class Computed(Protocol):
    """Another step from the input buffer to the output buffer: it computes what it writes there."""

    def apply(self, source: Buffer, target: Buffer) -> None:
        """Do it."""
        ...


@dataclass(frozen=True, slots=True)
class Write:
    """``nbytes`` from byte ``start`` of the record at ``record`` in output file ``file``.

    They come from ``position`` of the output buffer, or of the input buffer if the tile has no moves. In the output
    buffer the position of a long write equals its file offset modulo a page.
    """

    file: int
    record: int
    start: int
    nbytes: int
    position: int


@dataclass(frozen=True, slots=True)
class Tile:
    """Elements or rows ``first`` to ``last`` of a job. Without moves the bytes of its only read are written."""

    first: int
    last: int
    reads: tuple[Read, ...]
    moves: tuple[Move | Computed, ...]
    writes: tuple[Write, ...]


def tile_nbytes(block: int) -> tuple[int, int]:
    """(bytes of the input buffer, bytes of the output buffer) that are enough for every tile of a block.

    Half of a span that is read may be unwanted. A part of :data:`DIRECT_NBYTES` or more takes up to two pages more, a
    shorter one less than a cache line more.
    """
    slack = 16 * PAGE
    return 2 * block + block // 8 + slack, block + block // 16 + slack


def buffer_nbytes(block: int, threads: int) -> int:
    """Bytes of the buffers of all threads."""
    return threads * sum(tile_nbytes(block))


def placed(position: int, nbytes: int, offset: int) -> tuple[int, int]:
    """(position of ``nbytes`` from file ``offset``, first free position after them) in a buffer that is free from
    ``position`` on. Long parts get pages of their own. Others are padded to a cache line, unless they are below 4096
    bytes, where padding could outgrow them.
    """
    if nbytes >= DIRECT_NBYTES:
        position = congruent(position, offset)
        return position, page_end(position + nbytes)
    return position, position + (-(-nbytes // 64) * 64 if nbytes >= 4096 else nbytes)


def plan_reads(
    boxes: Sequence[tuple[View, tuple[int, ...]]],
) -> tuple[list[Read], list[tuple[int, tuple[int, ...]]]]:
    """The reads that fill the input buffer with the boxes, and (position, byte strides) of each box there.

    Boxes whose spans touch in storage are read in one go if at least half of that span is wanted; else run by run.
    """
    by_storage: dict[Storage, list[int]] = defaultdict(list)
    spans: list[tuple[int, int]] = []
    for number, (view, shape) in enumerate(boxes):
        start, nbytes = view.span(shape)
        spans.append((start, start + nbytes))
        by_storage[view.storage].append(number)
    reads: list[Read] = []
    places: dict[int, tuple[int, tuple[int, ...]]] = {}
    position = 0
    for storage, numbers in by_storage.items():
        for start, stop, group in _touching(sorted(numbers, key=spans.__getitem__), spans):
            wanted = sum(prod(boxes[n][1]) * boxes[n][0].dtype.itemsize for n in group)
            if 2 * wanted >= stop - start:
                begin, position = placed(position, stop - start, storage.offset + start)
                reads.append(Read(storage, start, stop - start, begin))
                for n in group:
                    view = boxes[n][0]
                    strides = tuple(s * view.dtype.itemsize for s in view.strides)
                    places[n] = (begin + spans[n][0] - start, strides)
                continue
            for n in group:
                runs, strides, nbytes = _runs(*boxes[n], position)
                reads += runs
                places[n] = (position, strides)
                position += nbytes
    return reads, [places[number] for number in range(len(boxes))]


def _touching(ordered: Sequence[int], spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, list[int]]]:
    """(start, stop, members) of maximal groups of spans that overlap or touch."""
    group: list[int] = []
    start = stop = 0
    for number in ordered:
        if group and spans[number][0] <= stop:
            group.append(number)
            stop = max(stop, spans[number][1])
        else:
            if group:
                yield start, stop, group
            (start, stop), group = spans[number], [number]
    if group:
        yield start, stop, group


def _runs(view: View, shape: tuple[int, ...], position: int) -> tuple[list[Read], tuple[int, ...], int]:
    """(reads of each contiguous run of a box, packed in the buffer; byte strides of the packed box; its bytes)."""
    size = view.dtype.itemsize
    loops = sorted((axis for axis in range(len(shape)) if shape[axis] > 1), key=lambda axis: -view.strides[axis])
    packed = [0] * len(shape)
    inner = 1
    while loops and view.strides[loops[-1]] == inner:
        axis = loops.pop()
        packed[axis] = inner * size
        inner *= shape[axis]
    step = inner * size
    starts = [view.offset]
    for axis in loops:
        starts = [start + index * view.strides[axis] for start in starts for index in range(shape[axis])]
    for axis in reversed(loops):
        packed[axis] = step
        step *= shape[axis]
    run = inner * size
    reads = [Read(view.storage, start * size, run, position + i * run) for i, start in enumerate(starts)]
    return reads, tuple(packed), step
