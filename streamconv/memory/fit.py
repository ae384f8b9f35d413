"""Choose the number of threads and the block size for a memory budget.

A caller describes the size of its buffers in a :class:`MemoryNeed`. The memory that the process already has resident,
and a margin, are subtracted from the budget first.
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
        what: the work, as an error message names it.
        nbytes: returns the bytes needed for (bytes of a block, number of threads); they grow with both.
        smallest: the smallest block that works.
        largest: the largest block that is of use.
        step: a block is a multiple of ``step``, or is ``smallest``.
        margin: what is needed besides, whatever the block.
        threads: rows of (threads, block), the most threads first. The first row whose blocks fit gives the number of
            threads; if none fits, it is 1.
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
    """The threads and the block that fit a budget; all sizes in bytes.

    Attributes:
        floor: the smallest budget that works.
        threads: the number of threads.
        block: the size of a block.
        free: what the budget leaves for buffers.
        spare: what the buffers leave of ``free``.
    """

    floor: int
    threads: int
    block: int
    free: int
    spare: int


def fit_budget(need: MemoryNeed, budget: MemoryBudget, jobs: int | None = None) -> Fitted:
    """Choose threads and a block for a need, given the memory that this process has resident now.

    Args:
        need: what is needed.
        budget: the bound on the process's resident memory.
        jobs: the threads that the user asked for.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works; the message names that one.
        UsageError: the number of threads is out of range.
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
    """The largest block that fits into ``nbytes``; ``smallest`` if none does.

    Args:
        nbytes: the bytes that are available.
        needed: returns the bytes needed for a block of a given size; they grow with it.
        smallest, largest: bounds of the block.
        step: the block is a multiple of ``step``, or is ``smallest``.
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
    """The number of threads that the user asked for, checked; None if it was left open.

    Raises:
        UsageError: it is below 1, or above 16 for each processor.
    """
    most = 16 * (os.cpu_count() or 1)
    if asked is not None and not 1 <= asked <= most:
        raise UsageError(f"--jobs {asked}: choose 1 to {most} threads")
    return asked
