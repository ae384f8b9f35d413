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

    The first failure ends it. So does an exception in the calling thread while that waits, such as a KeyboardInterrupt.
    Then no further task is begun; the exception is raised when the tasks that were begun have ended.

    Args:
        workers: one for each thread; a worker does one task at a time.
        tasks: the tasks; the iterator is asked for the next one by one thread at a time.
        work: what is done, called from several threads.
        meanwhile: called on the calling thread, about four times a second while the workers work.

    Raises:
        BaseException: the first failure of ``work``, ``tasks`` or ``meanwhile``, or the interrupt. A worker's failure
            that an interrupt came on top of is its cause.
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
    """What the threads share: the tasks that are left, who is at work, and the first failure.

    Who is at work is counted here because ``Thread.join`` cannot be asked again once it was interrupted: before Python
    3.13 it then takes a thread that still runs for ended.
    """

    def __init__(self, tasks: Iterator[T], work: Callable[[W, T], None]) -> None:
        self.failure: BaseException | None = None
        self._tasks, self._work = tasks, work
        self._working = self._ended = 0
        self._stopped = False
        self._changed = Condition()

    def serve(self, worker: W) -> None:
        """Do tasks until there are none left, or something has failed."""
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
        """Whether so many workers have ended, now or after at most so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended == workers, seconds)

    def stop(self) -> None:
        """Let no further task begin, and wait until those that were begun have ended, whatever interrupts it: they use
        buffers and files that are given up afterwards.
        """
        at_rest = False
        while not at_rest:
            # What is suppressed is an interrupt after the first one, which is about to be raised.
            with suppress(BaseException), self._changed:
                self._stopped = True
                at_rest = self._changed.wait_for(lambda: not self._working)
