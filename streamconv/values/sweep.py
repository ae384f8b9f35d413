"""Look at all elements of many tensors with a few threads, inside a memory budget, without writing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, TypeVar

import numpy.typing as npt

from streamconv.core.lazy import LazyTensor
from streamconv.io.checksums import SourceChecksums
from streamconv.io.source import check_io_mode
from streamconv.memory.budget import MIB, parse_budget
from streamconv.memory.fit import Need, fit_budget
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
    """How elements are looked at: threads, the bytes of one tensor that a thread looks at together, the way to read."""

    threads: int
    block: int
    io: str


@dataclass(frozen=True, slots=True)
class Part:
    """The same box of each tensor of an item: where it begins, and the elements as they are stored."""

    item: int
    start: tuple[int, ...]
    arrays: tuple[NDArray, ...]


def fit_sweep(max_ram: str, io: str = "direct", jobs: int | None = None, *, sides: int = 1) -> SweepSettings:
    """Fit buffers for ``sides`` tensors a thread into a budget.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works in this process.
        UsageError: a choice makes no sense.
    """
    check_io_mode(io)
    need = Need(
        what="looking at values",
        nbytes=lambda block, threads: threads * (2 * sides * block + _MARGIN_PER_THREAD),
        smallest=_SMALLEST_BLOCK,
        largest=_LARGEST_BLOCK,
        margin=_MARGIN,
        threads=((_THREADS, _SMALLEST_BLOCK),),
    )
    fitted = fit_budget(need, parse_budget(max_ram), jobs)
    return SweepSettings(fitted.threads, fitted.block, io)


def sweep(
    items: Sequence[Sequence[LazyTensor]],
    look: Callable[[Part], T],
    settings: SweepSettings,
    progress: Callable[[int, int], None] | None = None,
    checksums: SourceChecksums | None = None,
) -> list[list[T]]:
    """What ``look`` made of each part of each item, in the order of the elements whichever thread was first.

    Args:
        items: tensors of one shape, to be looked at together.
        look: called from several threads; the arrays are valid until it returns.
        settings: from :func:`fit_sweep`.
        progress: called with (bytes done, bytes in all), from any thread.
        checksums: what is read is held against these.

    Raises:
        DamagedError, StorageError: a file cannot be read as its metadata says.
    """
    run = _Sweep(items, look, settings, progress)
    sides = max((len(item) for item in items), default=1)
    with ExitStack() as stack:
        crews = [
            [stack.enter_context(closing(TensorReader(settings.io, settings.block, checksums))) for _ in range(sides)]
            for _ in range(settings.threads)
        ]
        threads = [Thread(target=run.work, args=(readers,), daemon=True) for readers in crews]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            run.stopped = True
            for thread in threads:
                thread.join()
            raise
    if run.failure is not None:
        raise run.failure
    return [[found for _, found in sorted(results, key=lambda pair: pair[0])] for results in run.results]


class _Sweep:
    def __init__(
        self,
        items: Sequence[Sequence[LazyTensor]],
        look: Callable[[Part], Any],
        settings: SweepSettings,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.look, self.progress = look, progress
        self.results: list[list[tuple[int, Any]]] = [[] for _ in items]
        self.lock = Lock()
        self.failure: BaseException | None = None
        self.stopped = False
        self.done, self.total = 0, sum(tensor.nbytes for item in items for tensor in item)
        self.todo = self._parts(items, settings.block)

    @staticmethod
    def _parts(
        items: Sequence[Sequence[LazyTensor]], block: int
    ) -> Iterator[tuple[int, int, tuple[int, ...], tuple[LazyTensor, ...]]]:
        for number, item in enumerate(items):
            for position, (start, tensors) in enumerate(parts(item, block)):
                yield number, position, start, tensors

    def work(self, readers: Sequence[TensorReader]) -> None:
        """Look at parts until there are no more, or another thread has failed."""
        try:
            while not self.stopped and self.failure is None:
                with self.lock:
                    task = next(self.todo, None)
                if task is None:
                    return
                number, position, start, tensors = task
                arrays = tuple(reader.read(tensor) for reader, tensor in zip(readers, tensors, strict=False))
                found = self.look(Part(number, start, arrays))
                with self.lock:
                    self.results[number].append((position, found))
                    self.done += sum(tensor.nbytes for tensor in tensors)
                if self.progress is not None:
                    self.progress(self.done, self.total)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            with self.lock:
                self.failure = self.failure or error
