"""A budget becomes threads and a block by one rule: as much as fits, never less than works, and the floor is named."""

from __future__ import annotations

import os

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.core.errors import MemoryBudgetError, UsageError
from streamconv.memory.budget import MIB, MemoryBudget, parse_budget
from streamconv.memory.fit import MemoryNeed, checked_jobs, fit_budget, largest_block

MOST_THREADS = 16 * (os.cpu_count() or 1)
# Between a look at the resident set in the test and the one in the function the process may grow by some pages.
GROWTH = 2 * MIB


def three_blocks(block: int, threads: int) -> int:
    return threads * (3 * block + 8 * MIB)


# Each thread needs three blocks and 8 MiB; three threads are worth it with whole blocks, two with the smallest.
NEED = MemoryNeed(
    what="the example",
    nbytes=three_blocks,
    smallest=1 * MIB,
    largest=16 * MIB,
    step=4096,
    margin=50 * MIB,
    threads=((3, 16 * MIB), (2, 1 * MIB)),
)


def above_used(nbytes: int) -> MemoryBudget:
    """A budget that leaves ``nbytes`` for buffers."""
    return MemoryBudget(psutil.Process().memory_info().rss + NEED.margin + nbytes, "test")


@pytest.mark.parametrize(
    ("free", "threads", "block"),
    [
        (three_blocks(1 * MIB, 1), 1, 1 * MIB),
        (three_blocks(4 * MIB, 1) - MIB, 1, 11 * MIB // 3),
        (three_blocks(1 * MIB, 2), 2, 1 * MIB),
        (three_blocks(5 * MIB, 2), 2, 5 * MIB),
        (three_blocks(16 * MIB, 2), 2, 16 * MIB),
        (three_blocks(16 * MIB, 3), 3, 16 * MIB),
        (three_blocks(100 * MIB, 3), 3, 16 * MIB),
    ],
)
def test_threads_and_blocks_are_as_many_and_as_large_as_fit(free: int, threads: int, block: int) -> None:
    fitted = fit_budget(NEED, above_used(free + GROWTH))
    assert fitted.threads == threads
    assert fitted.block == pytest.approx(block, abs=GROWTH)
    assert fitted.block % NEED.step == 0
    assert free <= fitted.free + GROWTH
    assert fitted.spare == fitted.free - three_blocks(fitted.block, fitted.threads) >= 0


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_threads_that_are_asked_for_are_given(jobs: int) -> None:
    fitted = fit_budget(NEED, above_used(three_blocks(2 * MIB, jobs) + GROWTH), jobs)
    assert fitted.threads == jobs
    assert 2 * MIB <= fitted.block <= 3 * MIB


@pytest.mark.parametrize("jobs", [None, 1, 4])
def test_the_floor_that_a_refusal_names_works_and_a_little_less_does_not(jobs: int | None) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        fit_budget(NEED, parse_budget("1M"), jobs)
    assert caught.value.remedy is not None
    floor = int(caught.value.remedy.removeprefix("say --max-ram ").split("M")[0])
    assert fit_budget(NEED, parse_budget(f"{floor + 2}M"), jobs).block >= NEED.smallest
    with pytest.raises(MemoryBudgetError):
        fit_budget(NEED, parse_budget(f"{floor - 2}M"), jobs)


def test_a_refusal_says_what_else_would_help() -> None:
    def words(need: MemoryNeed, jobs: int | None) -> str:
        with pytest.raises(MemoryBudgetError) as caught:
            fit_budget(need, parse_budget("1M"), jobs)
        return str(caught.value)

    asked = MemoryNeed("the example", three_blocks, 4 * MIB, 4 * MIB, block_asked=True)
    assert "1.00 MiB (--max-ram 1M) is below the workable floor of" in words(NEED, None)
    assert "for the example" in words(NEED, 1)
    assert "3 threads with blocks of 1.00 MiB do not fit 1.00 MiB (--max-ram 1M)" in words(NEED, 3)
    assert words(NEED, 3).endswith("M or more, or choose fewer --jobs")
    assert "1 thread with blocks of 4.00 MiB do not fit" in words(asked, None)
    assert words(asked, 1).endswith("M or more, or choose a smaller --block-size")
    assert words(asked, 2).endswith("M or more, or choose fewer --jobs or a smaller --block-size")


@pytest.mark.parametrize("jobs", [0, -1, MOST_THREADS + 1, 10**9])
def test_a_number_of_threads_that_makes_no_sense_is_refused(jobs: int) -> None:
    for ask in (lambda: checked_jobs(jobs), lambda: fit_budget(NEED, parse_budget("8G"), jobs)):
        with pytest.raises(UsageError, match=f"--jobs {jobs}: choose 1 to {MOST_THREADS} threads"):
            ask()


@given(
    nbytes=st.integers(-10, 10_000),
    fold=st.integers(1, 5),
    fixed=st.integers(0, 500),
    smallest=st.integers(1, 300),
    more=st.integers(0, 3000),
    step=st.integers(1, 70),
)
def test_no_larger_block_fits(nbytes: int, fold: int, fixed: int, smallest: int, more: int, step: int) -> None:
    """Against a look at every block there is."""
    largest = smallest + more
    allowed = [block for block in range(step, largest + 1, step) if fold * block + fixed <= nbytes]
    found = largest_block(nbytes, lambda block: fold * block + fixed, smallest, largest, step)
    assert found == max([smallest, *allowed])
