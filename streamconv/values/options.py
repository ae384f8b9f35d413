"""How values are read, whatever is done with them."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.kinds import Choice, Count
from streamconv.core.options import option
from streamconv.io.source import IO_MODES
from streamconv.memory.options import Budget

__all__ = ["ReadingOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingOptions:
    """The memory budget, the way to read, and the number of threads; None is as many as help within the budget."""

    max_ram: str = option(
        Budget(),
        "memory budget: 32G or 32GiB (2^30 units), 32GB (10^9), 50%, or auto (default): half of what is free, capped "
        "by the cgroup",
        default="auto",
        purpose="the memory for reading values",
        main=True,
    )
    io: str = option(
        Choice(IO_MODES),
        "direct (default): past the page cache, where the file system can; pread: through it, dropping what was used",
        default="direct",
        purpose="the way to read values",
    )
    jobs: int | None = option(
        Count(),
        "threads that read and write (default: as many as help within the budget)",
        purpose="the threads that read values",
    )
