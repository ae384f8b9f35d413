"""A pool of threads: a few workers, each on a thread of its own, take tasks from one iterator until none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from threading import Condition, Thread
from typing import Generic, TypeVar

__all__ = ["run_pool"]

W = TypeVar("W")
T = TypeVar("T")
_TICK_SECONDS = 0.25


def run_pool(
    workers: Sequence[W],
    tasks: Iterable[T],
    work: Callable[[W, T], None],
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Do ``work(worker, task)`` for every task, with whichever worker is free.

    The first failure stops the pool. So does an exception in the calling thread while it waits, such as a
    KeyboardInterrupt. Then no further task is begun, and the exception is raised when the running tasks have ended.

    Args:
        workers: one for each thread; a worker does one task at a time.
        tasks: the tasks; only one thread at a time advances the iterator.
        work: the function to call, from several threads.
        meanwhile: called on the calling thread, about four times a second while the workers work.

    Raises:
        BaseException: the first failure of ``work``, ``tasks`` or ``meanwhile``, or the interrupt. If a worker
            failed too, its failure is the ``__cause__`` of the interrupt.
    """
    pool = _Pool(iter(tasks), work)
    try:
        for worker in workers:
            Thread(target=pool.serve, args=(worker,), daemon=True).start()
        while not pool.has_ended(len(workers), _TICK_SECONDS):
            if meanwhile is not None and pool.failure is None:
                meanwhile()
    except BaseException as interrupt:
        pool.stop()
        if pool.failure is not None:
            raise interrupt from pool.failure
        raise
    if pool.failure is not None:
        raise pool.failure


class _Pool(Generic[W, T]):
    """The state that the threads share: the remaining tasks, the number of running workers, and the first failure.

    Running workers are counted because ``Thread.join`` cannot be called again after an interrupt: before Python 3.13
    it then takes a running thread for an ended one.
    """

    def __init__(self, tasks: Iterator[T], work: Callable[[W, T], None]) -> None:
        self.failure: BaseException | None = None
        self._tasks, self._work = tasks, work
        self._working = self._ended = 0
        self._stopped = False
        self._changed = Condition()

    def serve(self, worker: W) -> None:
        """Do tasks until none is left or one has failed."""
        with self._changed:
            self._working += 1
        try:
            for task in self._taken():
                self._work(worker, task)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in run_pool, which raises it
            with self._changed:
                self.failure = error if self.failure is None else self.failure
        finally:
            with self._changed:
                self._working -= 1
                self._ended += 1
                self._changed.notify()

    def _taken(self) -> Iterator[T]:
        while True:
            with self._changed:
                if self._stopped or self.failure is not None:
                    return
                try:
                    task = next(self._tasks)
                except StopIteration:
                    return
            yield task

    def has_ended(self, workers: int, seconds: float) -> bool:
        """Whether ``workers`` of them have ended; waits for that at most ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended == workers, seconds)

    def stop(self) -> None:
        """Begin no further task, and wait until the running ones have ended, even if interrupted again: they use
        buffers and files that the caller closes afterwards.
        """
        idle = False
        while not idle:
            # Only a further interrupt is suppressed here; run_pool raises the first one.
            with suppress(BaseException), self._changed:
                self._stopped = True
                idle = self._changed.wait_for(lambda: not self._working)
