"""Fit a plan into a memory budget: how large the buffers may be, and what the least is that works."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TypedDict

import psutil

from streamconv.core.errors import MemoryBudgetError, UsageError
from streamconv.execution.settings import EngineSettings
from streamconv.io.direct import PAGE, page_end
from streamconv.io.source import check_io_mode
from streamconv.memory.budget import MIB, MemoryBudget, format_bytes, parse_budget, parse_size
from streamconv.memory.threads import checked_jobs
from streamconv.moves.tiles import block_within, buffer_nbytes
from streamconv.planning.plan import Plan

__all__ = ["Fit", "RunChoices", "check_budget", "settings_for"]

_LARGEST_BLOCK = 16 * MIB
_SMALLEST_BLOCK = 64 << 10
# More than two help while each has blocks of full size: measured where rows are split (docs/performance.md).
_THREADS, _FEW_THREADS = 4, 2
# Thread stacks, the directory and the pickles of the files that are written, allocator slack.
_MARGIN = 12 * MIB
# What numpy takes, which a plan does without.
_ENGINE = 18 * MIB


class RunChoices(TypedDict, total=False):
    """How a conversion runs; nothing here changes what is written.

    Attributes:
        max_ram: the budget: ``32G``, ``32GB``, ``50%`` or ``auto``.
        io: ``direct`` (past the page cache, where the file system can), ``pread`` or ``mmap``.
        jobs: threads; if not said 4, or 2 if the budget is too small for blocks of 16 MiB for each.
        block_size: bytes that are read and written at a time, such as ``8M``; at most 16 MiB if not said.
    """

    max_ram: str
    io: str
    jobs: int | None
    block_size: str | None


@dataclass(frozen=True, slots=True)
class Fit:
    """How a plan fits a budget: the floor in bytes, the block, threads and write window that the budget allows, and the
    bytes that it leaves over.
    """

    budget: MemoryBudget
    floor_nbytes: int
    block: int
    threads: int
    window: int
    io: str
    spare: int

    @property
    def settings(self) -> EngineSettings:
        """What the engine is to work with."""
        return EngineSettings(self.block, self.threads, self.io)


def check_budget(work: Plan, choices: RunChoices, held: int = 0) -> Fit:
    """Fit a plan into a budget.

    Args:
        work: the plan.
        choices: see :class:`RunChoices`.
        held: bytes that are needed besides.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works in this process, or what was asked for does
            not fit.
        UsageError: a choice makes no sense.
    """
    io = choices.get("io", "direct")
    check_io_mode(io)
    budget = parse_budget(choices.get("max_ram", "auto"))
    smallest = max(work.smallest_block, _SMALLEST_BLOCK)
    engine = 0 if "numpy" in sys.modules else _ENGINE
    used = psutil.Process().memory_info().rss + engine + _MARGIN + held
    asked_block, asked_threads = _asked_block(choices, smallest), checked_jobs(choices.get("jobs"))
    least, fewest = asked_block or smallest, asked_threads or 1
    floor = _mebibytes(used + _needed(buffer_nbytes(least, fewest)))
    if budget.nbytes < floor and (asked_block or asked_threads):
        raise MemoryBudgetError(
            f"{fewest} threads with blocks of {format_bytes(least)} do not fit {budget}",
            remedy=f"say --max-ram {floor // MIB}M or more, or choose fewer --jobs or a smaller --block-size",
        )
    if budget.nbytes < floor:
        raise MemoryBudgetError(
            f"{budget} is below the workable floor of {format_bytes(floor)} for this checkpoint",
            remedy=f"say --max-ram {floor // MIB}M or more",
        )
    free = budget.nbytes - used
    count = asked_threads or _threads_within(free, least, asked_block or max(_LARGEST_BLOCK, least))
    block = asked_block or min(max(_LARGEST_BLOCK, smallest), max(smallest, block_within(_for_buffers(free), count)))
    buffers = buffer_nbytes(block, count)
    together = min(len(work.files), 2 * work.target_layout.tp)
    window = min(16 * MIB, max(256 << 10, free // 4 // (2 * together)))
    return Fit(budget, floor, block, count, window, io, free - _needed(buffers))


def _threads_within(free: int, least: int, whole: int) -> int:
    """Many threads if blocks of ``whole`` size fit for each, few if the least blocks do, else one."""
    for count, block in ((_THREADS, whole), (_FEW_THREADS, least)):
        if _needed(buffer_nbytes(block, count)) <= free:
            return count
    return 1


def _asked_block(choices: RunChoices, smallest: int) -> int | None:
    asked = choices.get("block_size")
    if asked is None:
        return None
    block = parse_size(asked, "--block-size") // PAGE * PAGE
    if block < smallest:
        raise UsageError(
            f"--block-size {asked}: a row of this model's matrices needs {smallest}",
            remedy=f"say --block-size {page_end(smallest) // 1024}K or more",
        )
    return block


def settings_for(work: Plan | None, choices: RunChoices) -> EngineSettings:
    """What the engine works with for a plan; without one, what it takes where memory is no matter.

    Raises:
        MemoryBudgetError, UsageError: as :func:`check_budget`.
    """
    if work is not None:
        return check_budget(work, choices).settings
    io, asked = choices.get("io", "direct"), choices.get("block_size")
    check_io_mode(io)
    block = _LARGEST_BLOCK if asked is None else max(PAGE, parse_size(asked, "--block-size") // PAGE * PAGE)
    return EngineSettings(block, checked_jobs(choices.get("jobs")) or _THREADS, io)


# Of what the budget leaves, two fifths are for buffers, and up to a quarter is for data on its way to the disk.
def _for_buffers(free: int) -> int:
    return free * 2 // 5


def _needed(buffers: int) -> int:
    return -(-buffers * 5 // 2)


def _mebibytes(nbytes: int) -> int:
    return -(-nbytes // MIB) * MIB
