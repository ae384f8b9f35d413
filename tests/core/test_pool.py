"""Every task is done once, the first failure ends the pool, and nobody is left working when it has ended."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from threading import Barrier, Event, Lock

import pytest

from streamconv.core.pool import run_pool


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(1)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT raises, also where the shell that started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("tasks", [0, 1, 5, 1000])
def test_every_task_is_done_once(count: int, tasks: int) -> None:
    done: list[list[int]] = [[] for _ in range(count)]
    run_pool(done, range(tasks), list.append)
    assert sorted(task for each in done for task in each) == list(range(tasks))


def test_all_workers_work_at_the_same_time() -> None:
    together = Barrier(4, timeout=20)

    def work(_: int, __: int) -> None:
        together.wait()

    run_pool(range(4), range(4), work)


def test_a_worker_does_one_task_at_a_time() -> None:
    locks = [Lock() for _ in range(3)]

    def work(lock: Lock, _: int) -> None:
        assert lock.acquire(blocking=False)
        time.sleep(0.0005)
        lock.release()

    run_pool(locks, range(200), work)


def test_the_iterator_is_asked_by_one_thread_at_a_time_and_only_when_a_worker_is_free() -> None:
    taken: list[int] = []
    done: list[int] = []

    def tasks() -> Iterator[int]:  # a generator that is entered twice raises
        for number in range(300):
            assert len(taken) - len(done) <= 3
            taken.append(number)
            yield number

    run_pool(range(3), tasks(), lambda _, task: done.append(task))
    assert taken == list(range(300))


@pytest.mark.parametrize("count", [1, 4])
def test_the_first_failure_is_raised_and_no_task_is_begun_after_it(count: int) -> None:
    begun: list[int] = []

    def work(_: int, task: int) -> None:
        begun.append(task)
        if task == 10:
            raise LookupError("task 10")
        time.sleep(0.01)

    with pytest.raises(LookupError, match="task 10"):
        run_pool(range(count), range(10_000), work)
    assert begun[0] == 0
    assert max(begun) < 10 + count


def test_of_two_failures_the_first_counts() -> None:
    second = Event()

    def work(_: int, task: int) -> None:
        if task == 0:
            assert second.wait(20)
            raise LookupError("the first")
        second.set()
        time.sleep(0.3)
        raise ArithmeticError("the second")

    with pytest.raises(LookupError, match="the first"):
        run_pool(range(2), range(2), work)


def test_a_failure_of_the_iterator_is_raised() -> None:
    def tasks() -> Iterator[int]:
        yield from range(5)
        raise OSError("no more")

    done: list[int] = []
    with pytest.raises(OSError, match="no more"):
        run_pool(range(2), tasks(), lambda _, task: done.append(task))
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_system_exit_in_a_worker_is_not_swallowed() -> None:
    def work(_: int, __: int) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        run_pool(range(2), range(10), work)


# -- interrupts --------------------------------------------------------------------------------------------------------


def interrupt() -> None:
    """What Ctrl-C does: the signal goes to the thread that called."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def test_an_interrupt_lets_the_tasks_that_were_begun_end_and_begins_no_other() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def work(_: int, task: int) -> None:
        begun.append(task)
        if task == 1:
            interrupt()
        time.sleep(0.2)
        ended.append(task)

    with pytest.raises(KeyboardInterrupt):
        run_pool(range(2), range(1000), work)
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 4


def test_further_interrupts_do_not_leave_workers_behind() -> None:
    ended: list[int] = []

    def work(_: int, task: int) -> None:
        for _ in range(4):
            interrupt()
            time.sleep(0.1)
        ended.append(task)

    with pytest.raises(KeyboardInterrupt):
        run_pool(range(1), range(100), work)
    assert ended == [0]


def test_a_failure_that_an_interrupt_came_on_top_of_is_its_cause() -> None:
    def work(_: int, __: int) -> None:
        interrupt()
        time.sleep(0.1)
        raise LookupError("under the interrupt")

    with pytest.raises(KeyboardInterrupt) as caught:
        run_pool(range(1), range(100), work)
    assert isinstance(caught.value.__cause__, LookupError)


# -- meanwhile ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_meanwhile_is_called_on_the_calling_thread_while_the_workers_work() -> None:
    calls: list[tuple[threading.Thread, int]] = []
    done: list[int] = []

    def work(_: int, task: int) -> None:
        time.sleep(0.3)
        done.append(task)

    run_pool(range(1), range(4), work, lambda: calls.append((threading.current_thread(), len(done))))
    assert {thread for thread, _ in calls} == {threading.current_thread()}
    assert {1, 2, 3} <= {count for _, count in calls}


def test_a_failure_of_meanwhile_ends_the_pool() -> None:
    done: list[int] = []

    def work(_: int, task: int) -> None:
        time.sleep(0.05)
        done.append(task)

    def meanwhile() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run_pool(range(2), range(1000), work, meanwhile)
    assert len(done) < 100
