"""Ways to run a plan's jobs. An engine sees files, offsets and bytes; it never sees a name of a model."""

from __future__ import annotations

import os
from dataclasses import dataclass

from streamconv.errors import UsageError

__all__ = ["EngineSettings", "checked_jobs"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Block size in bytes, number of threads, how the source is read (one of ``IO_MODES``)."""

    block: int
    threads: int
    io: str


def checked_jobs(asked: int | None) -> int | None:
    """The number of threads that was asked for.

    Raises:
        UsageError: it is below 1, or more than any machine has a use for.
    """
    most = 16 * (os.cpu_count() or 1)
    if asked is not None and not 1 <= asked <= most:
        raise UsageError(f"--jobs {asked}: choose 1 to {most} threads")
    return asked
