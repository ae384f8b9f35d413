"""From a memory budget to threads and blocks: how many, how large, and what is left over.

Who needs memory says in a :class:`MemoryNeed` what its buffers take. What the process has resident already, and a
margin, are taken off the budget first.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from streamconv.core.errors import MemoryBudgetError, UsageError
from streamconv.memory.budget import MIB, MemoryBudget, format_bytes

__all__ = ["Fitted", "MemoryNeed", "checked_jobs", "fit_budget", "largest_block"]


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a piece of work needs of a budget; all sizes in bytes.

    Attributes:
        what: the work, as a refusal names it.
        nbytes: what is needed for (a block of so many bytes, so many threads); it grows with both.
        smallest: the least block that works.
        largest: a larger block gains nothing.
        step: a block is a multiple of it, or the smallest.
        margin: what is needed besides, whatever the block.
        threads: (threads, block), the most threads first: so many are taken where blocks of that size fit for each.
            Where no row fits it is one thread.
        block_asked: whether the block is what the user asked for.
    """

    what: str
    nbytes: Callable[[int, int], int]
    smallest: int
    largest: int
    step: int = 1
    margin: int = 0
    threads: tuple[tuple[int, int], ...] = ()
    block_asked: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a budget gives: threads and their block; ``floor``, the least budget; ``free``, what is there for buffers,
    and ``spare``, what they leave of it. All sizes in bytes.
    """

    floor: int
    threads: int
    block: int
    free: int
    spare: int


def fit_budget(need: MemoryNeed, budget: MemoryBudget, jobs: int | None = None) -> Fitted:
    """Fit a need into a budget, in this process as it is now.

    Args:
        need: what is needed.
        budget: the bound on the process's resident memory.
        jobs: the threads that the user asked for.

    Raises:
        MemoryBudgetError: the budget is below the least that works; the message says which budget does.
        UsageError: so many threads make no sense.
    """
    fewest = checked_jobs(jobs) or 1
    used = psutil.Process().memory_info().rss + need.margin
    floor = -(-(used + need.nbytes(need.smallest, fewest)) // MIB) * MIB
    if budget.nbytes < floor:
        raise _refusal(need, budget, fewest, floor)
    free = budget.nbytes - used
    fitting = (count for count, block in need.threads if need.nbytes(block, count) <= free)
    threads = jobs or next(fitting, 1)
    block = largest_block(free, lambda block: need.nbytes(block, threads), need.smallest, need.largest, need.step)
    return Fitted(floor, threads, block, free, free - need.nbytes(block, threads))


def largest_block(nbytes: int, needed: Callable[[int], int], smallest: int, largest: int, step: int = 1) -> int:
    """The largest block for which ``nbytes`` are enough; the smallest if they are enough for none.

    Args:
        nbytes: bytes that there are.
        needed: bytes that a block of so many bytes needs; they grow with it.
        smallest, largest: bounds of the block.
        step: the block is a multiple of it, or the smallest.
    """
    steps = range(1, largest // step + 1)
    return max(smallest, step * bisect_right(steps, nbytes, key=lambda count: needed(count * step)))


def _refusal(need: MemoryNeed, budget: MemoryBudget, threads: int, floor: int) -> MemoryBudgetError:
    less = ["fewer --jobs"] * (threads > 1) + ["a smaller --block-size"] * need.block_asked
    remedy = f"say --max-ram {floor // MIB}M or more"
    if not less:
        return MemoryBudgetError(
            f"{budget} is below the workable floor of {format_bytes(floor)} for {need.what}", remedy=remedy
        )
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return MemoryBudgetError(
        f"{count} with blocks of {format_bytes(need.smallest)} do not fit {budget}",
        remedy=f"{remedy}, or choose {' or '.join(less)}",
    )


def checked_jobs(asked: int | None) -> int | None:
    """The number of threads that was asked for.

    Raises:
        UsageError: it is below 1, or more than any machine has a use for.
    """
    most = 16 * (os.cpu_count() or 1)
    if asked is not None and not 1 <= asked <= most:
        raise UsageError(f"--jobs {asked}: choose 1 to {most} threads")
    return asked
