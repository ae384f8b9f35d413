"""Fit a plan into a memory budget: the size of the buffers, and the smallest budget that works."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from streamconv.core.errors import UsageError
from streamconv.execution.engine import Engine
from streamconv.execution.options import RunOptions
from streamconv.execution.registry import find_engine
from streamconv.execution.settings import EngineSettings
from streamconv.io.direct import PAGE, page_end
from streamconv.memory.budget import MIB, MemoryBudget, parse_budget, parse_size
from streamconv.memory.fit import MemoryNeed, checked_jobs, fit_budget
from streamconv.moves.tiles import buffer_nbytes
from streamconv.planning.plan import Plan

__all__ = ["Fit", "check_budget", "settings_for"]

_LARGEST_BLOCK = 16 * MIB
_SMALLEST_BLOCK = 64 << 10
# More than two threads help only if each has blocks of full size: measured on split rows (docs/performance.md).
_THREADS, _FEW_THREADS = 4, 2
# Thread stacks, the pickles of the files that are written, allocator slack.
_MARGIN = 12 * MIB
# Of each tensor that is written: its job, its checksum, its entry in the journal and in the directory of its file.
_PER_TENSOR = 640
# The memory of numpy, and of the modules that move bytes. Making a plan imports numpy only if it reads values.
_NUMPY, _MOVERS = 12 * MIB, 6 * MIB


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


def check_budget(work: Plan, options: RunOptions, held: int = 0) -> Fit:
    """Fit a plan into a budget.

    Args:
        work: the plan.
        options: how it runs.
        held: bytes that the caller needs besides.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works in this process, or what was asked for does
            not fit.
        UsageError: a choice makes no sense.
    """
    engine, budget = find_engine(options.engine), parse_budget(options.max_ram)
    fitted = fit_budget(_need(work, options, held, engine), budget, _asked_threads(options, engine))
    together = min(len(work.files), 2 * work.target_layout.tp)
    window = min(16 * MIB, max(256 << 10, fitted.free // 4 // (2 * together)))
    return Fit(budget, fitted.floor, fitted.block, fitted.threads, window, options.io, engine.name, fitted.spare)


def _need(work: Plan, options: RunOptions, held: int, engine: Engine) -> MemoryNeed:
    smallest = max(work.smallest_block, _SMALLEST_BLOCK)
    asked = _asked_block(options, smallest)
    least, largest = asked or smallest, asked or max(_LARGEST_BLOCK, smallest)
    return MemoryNeed(
        what="this checkpoint",
        nbytes=_needed_nbytes,
        smallest=least,
        largest=largest,
        step=PAGE,
        margin=_MARGIN + _to_come() + _PER_TENSOR * sum(len(file.entries) for file in work.files) + held,
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


def _asked_threads(options: RunOptions, engine: Engine) -> int | None:
    asked = checked_jobs(options.jobs)
    if asked is not None and engine.most_threads is not None and asked > engine.most_threads:
        raise UsageError(
            f"--jobs {asked}: the engine {engine.name} has a use for {engine.most_threads}",
            remedy=f"say --jobs {engine.most_threads}, or choose another --engine",
        )
    return asked


def _asked_block(options: RunOptions, smallest: int) -> int | None:
    asked = options.block_size
    if asked is None:
        return None
    block = parse_size(asked) // PAGE * PAGE
    if block < smallest:
        raise UsageError(
            f"--block-size {asked}: a row of this model's matrices needs {smallest}",
            remedy=f"say --block-size {page_end(smallest) // 1024}K or more",
        )
    return block


def settings_for(work: Plan | None, options: RunOptions) -> EngineSettings:
    """The engine's settings for a plan; without a plan, its settings with unlimited memory.

    Raises:
        MemoryBudgetError, UsageError: as :func:`check_budget`.
    """
    if work is not None:
        return check_budget(work, options).settings
    engine, asked = find_engine(options.engine), options.block_size
    block = _LARGEST_BLOCK if asked is None else max(PAGE, parse_size(asked) // PAGE * PAGE)
    return EngineSettings(block, _asked_threads(options, engine) or _threads(engine), options.io, engine.name)
