"""How many files may be open at a time: the soft limit is raised as far as a run needs and the system allows."""

from __future__ import annotations

import resource
from pathlib import Path

from streamconv.core.errors import CapacityError

__all__ = ["allow_open_files"]

# Files that Python, its imports and the journal open besides.
_MARGIN = 64


def allow_open_files(count: int) -> None:
    """Allow ``count`` more open files than there are now.

    Raises:
        CapacityError: the hard limit is below that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sum(1 for _ in Path("/proc/self/fd").iterdir()) + count + _MARGIN
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise CapacityError(
            f"{count} files are to be open at a time, with what is open now {wanted}; the system's limit is {hard}",
            remedy=f"raise it (ulimit -Hn {wanted}), or let the result have fewer files: a larger --max-shard-size, or "
            "fewer ranks",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
