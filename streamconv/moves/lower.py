"""Turn target tensors into jobs: long runs, transposed matrices, and groups of tensors that are filled together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod

from streamconv.core.dtypes import DType
from streamconv.core.lazy import Piece, Storage
from streamconv.moves.jobs import BlocksJob, Job, RowsJob, RunJob, Target
from streamconv.moves.low_rank import LowRankJob

__all__ = ["lower"]

# Shorter runs are gathered in memory: a separate read costs more than moving them.
_SMALL_RUN = 64 << 10


def lower(targets: Iterable[Target]) -> list[Job]:
    """The jobs that fill all targets, ordered by where they write."""
    runs: dict[tuple[Storage, int, int, DType, DType], list[tuple[int, int, int]]] = defaultdict(list)
    rows: list[Target] = []
    jobs: list[Job] = []
    for given in targets:
        if given.update is not None:
            jobs.append(LowRankJob(given.file, given.offset, given.tensor, given.update))
            continue
        target = _by_rows(given)
        straight = _straight_runs(target)
        if straight is None:
            if _is_transposed(target):
                jobs.append(BlocksJob(target))
            else:
                rows.append(target)
            continue
        for storage, start, numel, source, place in straight:
            runs[storage, start, numel, source, target.tensor.dtype].append((target.file, target.offset, place))
    jobs += [RunJob(*key, tuple(sinks)) for key, sinks in runs.items()]
    jobs += [RowsJob(tuple(group)) for group in _sharing(rows)]
    return sorted(jobs, key=lambda job: job.place)


def _by_rows(target: Target) -> Target:
    """The target without leading axes of size 1, because jobs are cut along the first axis."""
    tensor = target.tensor
    while len(tensor.shape) > 1 and tensor.shape[0] == 1:
        tensor = tensor.flatten(0)
    return replace(target, tensor=tensor.coalesced())


def _straight_runs(target: Target) -> list[tuple[Storage, int, int, DType, int]] | None:
    """(storage, start byte, elements, dtype, start byte in the target) of each piece; None unless every piece is a run
    that is worth a read of its own.
    """
    tensor = target.tensor
    if len(tensor.pieces) > 1 and tensor.nbytes // len(tensor.pieces) < _SMALL_RUN:
        return None
    runs = []
    for piece in tensor.pieces:
        if not piece.is_stored or not _is_run(piece, tensor.shape):
            return None
        view = piece.views[0]
        place = sum(a * prod(tensor.shape[axis + 1 :]) for axis, a in enumerate(piece.start))
        start = view.offset * view.dtype.itemsize
        runs.append((view.storage, start, piece.numel, view.dtype, place * tensor.dtype.itemsize))
    return runs


def _is_transposed(target: Target) -> bool:
    """Whether a matrix is stored column by column, and is too large to be gathered whole."""
    tensor = target.tensor
    if len(tensor.shape) != 2 or tensor.nbytes < _SMALL_RUN:
        return False
    if not all(piece.is_stored for piece in tensor.pieces):
        return False
    steps = [piece.views[0].strides for piece in tensor.pieces if min(piece.shape) > 1]
    return bool(steps) and all(0 < a < b for a, b in steps)


def _is_run(piece: Piece, shape: Sequence[int]) -> bool:
    """Whether a box is contiguous both in its tensor and in its storage."""
    stored = piece.views[0].strides
    step, whole = 1, True
    for axis in reversed(range(len(shape))):
        size = piece.shape[axis]
        if size > 1 and (stored[axis] != step or not whole):
            return False
        step *= size
        whole = whole and size == shape[axis]
    return True


def _sharing(targets: Sequence[Target]) -> Iterator[list[Target]]:
    """Groups of targets with equally many rows whose spans of a storage overlap."""
    parent = list(range(len(targets)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    spans: dict[tuple[Storage, int], list[tuple[int, int, int]]] = defaultdict(list)
    for number, target in enumerate(targets):
        rows = target.tensor.shape[0] if target.tensor.shape else 1
        for piece in target.tensor.pieces:
            for view in piece.views:
                start, nbytes = view.span(piece.shape)
                spans[view.storage, rows].append((start, start + nbytes, number))
    for storage_spans in spans.values():
        reach, last = -1, -1
        for start, stop, number in sorted(storage_spans):
            if start < reach:
                parent[root(number)] = root(last)
            if stop > reach:
                reach, last = stop, number
    groups: dict[int, list[Target]] = defaultdict(list)
    for number, target in enumerate(targets):
        groups[root(number)].append(target)
    yield from groups.values()
