"""How many threads may be asked for."""

from __future__ import annotations

import os

from streamconv.core.errors import UsageError

__all__ = ["checked_jobs"]


def checked_jobs(asked: int | None) -> int | None:
    """The number of threads that was asked for.

    Raises:
        UsageError: it is below 1, or more than any machine has a use for.
    """
    most = 16 * (os.cpu_count() or 1)
    if asked is not None and not 1 <= asked <= most:
        raise UsageError(f"--jobs {asked}: choose 1 to {most} threads")
    return asked
