"""Fit a plan into a memory budget: the size of the buffers, and the smallest budget that works."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TypedDict

from streamconv.core.errors import UsageError
from streamconv.execution.engine import Engine
from streamconv.execution.registry import find_engine
from streamconv.execution.settings import DEFAULT_ENGINE, EngineSettings
from streamconv.io.direct import PAGE, page_end
from streamconv.io.source import check_io_mode
from streamconv.memory.budget import MIB, MemoryBudget, parse_budget, parse_size
from streamconv.memory.fit import MemoryNeed, checked_jobs, fit_budget
from streamconv.moves.tiles import buffer_nbytes
from streamconv.planning.plan import Plan

__all__ = ["Fit", "RunChoices", "check_budget", "settings_for"]

_LARGEST_BLOCK = 16 * MIB
_SMALLEST_BLOCK = 64 << 10
# More than two threads help only if each has blocks of full size: measured on split rows (docs/performance.md).
_THREADS, _FEW_THREADS = 4, 2
# Thread stacks, the directory and the pickles of the files that are written, allocator slack.
_MARGIN = 12 * MIB
# The memory of numpy, and of the modules that move bytes. Making a plan imports numpy only if it reads values.
_NUMPY, _MOVERS = 12 * MIB, 6 * MIB


class RunChoices(TypedDict, total=False):
    """How a conversion runs; nothing here changes what is written.

    Attributes:
        max_ram: the budget: ``32G``, ``32GB``, ``50%`` or ``auto``.
        io: ``direct`` (past the page cache, where the file system can), ``pread`` or ``mmap``.
        jobs: the number of threads; by default 4, or 2 if the budget is too small for blocks of 16 MiB for each.
        block_size: bytes that are read and written at a time, such as ``8M``; by default at most 16 MiB.
        engine: ``threads``, or ``serial``, the reference engine: one tile after another, to compare the other with.
    """

    max_ram: str
    io: str
    jobs: int | None
    block_size: str | None
    engine: str


@dataclass(frozen=True, slots=True)
class Fit:
    """How a plan runs within a budget: the smallest budget that works, the block, threads and write window that this
    one allows, the way to read and write, the engine, and the bytes of the budget that are not used.
    """

    budget: MemoryBudget
    floor_nbytes: int
    block: int
    threads: int
    window: int
    io: str
    engine: str
    spare: int

    @property
    def settings(self) -> EngineSettings:
        """The settings for the engine."""
        return EngineSettings(self.block, self.threads, self.io, self.engine)


def check_budget(work: Plan, choices: RunChoices, held: int = 0) -> Fit:
    """Fit a plan into a budget.

    Args:
        work: the plan.
        choices: see :class:`RunChoices`.
        held: bytes that the caller needs besides.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works in this process, or what was asked for does
            not fit.
        UsageError: a choice makes no sense.
    """
    io = choices.get("io", "direct")
    check_io_mode(io)
    engine = find_engine(choices.get("engine", DEFAULT_ENGINE))
    budget = parse_budget(choices.get("max_ram", "auto"))
    fitted = fit_budget(_need(work, choices, held, engine), budget, _asked_threads(choices, engine))
    together = min(len(work.files), 2 * work.target_layout.tp)
    window = min(16 * MIB, max(256 << 10, fitted.free // 4 // (2 * together)))
    return Fit(budget, fitted.floor, fitted.block, fitted.threads, window, io, engine.name, fitted.spare)


def _need(work: Plan, choices: RunChoices, held: int, engine: Engine) -> MemoryNeed:
    smallest = max(work.smallest_block, _SMALLEST_BLOCK)
    asked = _asked_block(choices, smallest)
    least, largest = asked or smallest, asked or max(_LARGEST_BLOCK, smallest)
    return MemoryNeed(
        what="this checkpoint",
        nbytes=_needed_nbytes,
        smallest=least,
        largest=largest,
        step=PAGE,
        margin=_MARGIN + _to_come() + held,
        threads=((_threads(engine), largest), (min(_FEW_THREADS, _threads(engine)), least)),
        block_asked=asked is not None,
    )


def _to_come() -> int:
    """What a conversion will load that this process has not."""
    parts = (("numpy", _NUMPY), ("streamconv.execution.tile_worker", _MOVERS))
    return sum(nbytes for module, nbytes in parts if module not in sys.modules)


def _needed_nbytes(block: int, threads: int) -> int:
    # Two fifths of what the budget leaves are for buffers, and up to a quarter is for data on its way to the disk.
    return -(-buffer_nbytes(block, threads) * 5 // 2)


def _threads(engine: Engine) -> int:
    return _THREADS if engine.most_threads is None else min(_THREADS, engine.most_threads)


def _asked_threads(choices: RunChoices, engine: Engine) -> int | None:
    asked = checked_jobs(choices.get("jobs"))
    if asked is not None and engine.most_threads is not None and asked > engine.most_threads:
        raise UsageError(
            f"--jobs {asked}: the engine {engine.name} has a use for {engine.most_threads}",
            remedy=f"say --jobs {engine.most_threads}, or choose another --engine",
        )
    return asked


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
    """The engine's settings for a plan; without a plan, its settings with unlimited memory.

    Raises:
        MemoryBudgetError, UsageError: as :func:`check_budget`.
    """
    if work is not None:
        return check_budget(work, choices).settings
    io, asked = choices.get("io", "direct"), choices.get("block_size")
    check_io_mode(io)
    engine = find_engine(choices.get("engine", DEFAULT_ENGINE))
    block = _LARGEST_BLOCK if asked is None else max(PAGE, parse_size(asked, "--block-size") // PAGE * PAGE)
    return EngineSettings(block, _asked_threads(choices, engine) or _threads(engine), io, engine.name)
