"""Look at all elements of many tensors with a few threads, inside a memory budget, without writing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy.typing as npt

from streamconv.core.counting import Counted
from streamconv.core.lazy import LazyTensor
from streamconv.core.pool import run_pool
from streamconv.io.checksums import SourceChecksums
from streamconv.io.identity import identities_of, refuse_changed
from streamconv.io.unread import read_unread
from streamconv.memory.budget import MIB, parse_budget
from streamconv.memory.fit import MemoryNeed, fit_budget
from streamconv.values.options import ReadingOptions
from streamconv.values.reader import TensorReader, parts

__all__ = ["Part", "SweepSettings", "fit_sweep", "sweep"]

NDArray = npt.NDArray[Any]
T = TypeVar("T")
_LARGEST_BLOCK, _SMALLEST_BLOCK = 8 * MIB, 256 << 10
_THREADS = 2
# Thread stacks, double-precision temporaries of a chunk, allocator slack.
_MARGIN, _MARGIN_PER_THREAD = 8 * MIB, 14 * MIB


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """The number of threads, the bytes of a tensor that a thread reads at a time, and the way to read (``--io``)."""

    threads: int
    block: int
    io: str


@dataclass(frozen=True, slots=True)
class Part:
    """The same box of each tensor of an item: where it begins, and the elements as they are stored."""

    item: int
    start: tuple[int, ...]
    arrays: tuple[NDArray, ...]


def fit_sweep(options: ReadingOptions, *, sides: int = 1) -> SweepSettings:
    """Fit the buffers into a budget; each thread reads ``sides`` tensors at a time.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works in this process.
        UsageError: a choice makes no sense.
    """
    need = MemoryNeed(
        what="looking at values",
        nbytes=lambda block, threads: threads * (2 * sides * block + _MARGIN_PER_THREAD),
        smallest=_SMALLEST_BLOCK,
        largest=_LARGEST_BLOCK,
        margin=_MARGIN,
        threads=((_THREADS, _SMALLEST_BLOCK),),
    )
    fitted = fit_budget(need, parse_budget(options.max_ram), options.jobs)
    return SweepSettings(fitted.threads, fitted.block, options.io)


def sweep(
    items: Sequence[Sequence[LazyTensor]],
    look: Callable[[Part], T],
    settings: SweepSettings,
    progress: Callable[[int, int], None] | None = None,
    checksums: SourceChecksums | None = None,
) -> list[list[T]]:
    """The results of ``look`` for each part of each item, in the order of the elements, whatever the threads did.

    Args:
        items: tensors of one shape, to be looked at together.
        look: called from several threads; the arrays are valid until it returns.
        settings: from :func:`fit_sweep`.
        progress: called with (bytes done, bytes in all), from any thread.
        checksums: compares the bytes that are read with the recorded CRC-32s; the rest of records that ``items`` have
            a part of is read too, at the end.

    Raises:
        DamagedError: a record's CRC-32 is not the recorded one, or a file was changed since it was opened.
        StorageError: the system refused to read.
    """
    collected = _Sweep(items, look, progress)
    sides = max((len(item) for item in items), default=1)
    with ExitStack() as stack:
        workers = [
            [stack.enter_context(closing(TensorReader(settings.io, settings.block, checksums))) for _ in range(sides)]
            for _ in range(settings.threads)
        ]
        run_pool(workers, _tasks(items, settings.block), collected.look_at)
        if checksums is not None:
            read_unread(checksums, [readers[0].own for readers in workers], collected.count)
    refuse_changed(identities_of(tensor for item in items for tensor in item))
    return [[result for _, result in sorted(pairs, key=lambda pair: pair[0])] for pairs in collected.results]


class _Task(NamedTuple):
    """A part of an item: the item's number, the part's number, where it begins, and the part of each tensor."""

    item: int
    position: int
    start: tuple[int, ...]
    tensors: tuple[LazyTensor, ...]


def _tasks(items: Sequence[Sequence[LazyTensor]], block: int) -> Iterator[_Task]:
    for number, item in enumerate(items):
        for position, (start, tensors) in enumerate(parts(item, block)):
            yield _Task(number, position, start, tensors)


class _Sweep:
    """Collects the results for each item, as (number of the part, result)."""

    def __init__(
        self,
        items: Sequence[Sequence[LazyTensor]],
        look: Callable[[Part], Any],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.results: list[list[tuple[int, Any]]] = [[] for _ in items]
        self.count = Counted(sum(tensor.nbytes for item in items for tensor in item), progress)
        self._look, self._lock = look, Lock()

    def look_at(self, readers: Sequence[TensorReader], task: _Task) -> None:
        """Read a part, with one reader for each tensor, and keep the result of looking at it."""
        arrays = tuple(reader.read(tensor) for reader, tensor in zip(readers, task.tensors, strict=False))
        result = self._look(Part(task.item, task.start, arrays))
        with self._lock:
            self.results[task.item].append((task.position, result))
        self.count(sum(tensor.nbytes for tensor in task.tensors))
