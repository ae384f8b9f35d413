"""Every error that streamconv raises on purpose, with the exit code that the command line returns for it.

    StreamconvError                 1   a bug, if it reaches the user bare
    ├── UsageError                  2   the command line or the arguments do not make sense
    ├── SourceError                 3   the source is not there, or is not a checkpoint we know
    │   ├── UnsupportedError        3   recognised, named, and not translated
    │   └── AmbiguousError          3   more than one reading; an option settles it
    ├── CapacityError               4   the job does not fit
    │   ├── MemoryBudgetError       4   --max-ram is below the workable floor
    │   └── DiskSpaceError          4   the destination has too little room
    ├── StorageError                5   the system did not do a read or a write
    ├── DamagedError                6   the input is broken
    │   └── UnsafeError             6   the input asks for what no data file should
    ├── DifferenceError             7   values differ where they must not
    └── DestinationError            8   destination in use, or holds a checkpoint already

A message has up to three lines: what was being done and the numbers, where, and what to do about it. Names in it may
come from a file, so characters that a terminal obeys are replaced.
"""

from __future__ import annotations

from streamconv.core.text import printable

__all__ = [
    "AmbiguousError",
    "CapacityError",
    "DamagedError",
    "DestinationError",
    "DifferenceError",
    "DiskSpaceError",
    "MemoryBudgetError",
    "SourceError",
    "StorageError",
    "StreamconvError",
    "UnsafeError",
    "UnsupportedError",
    "UsageError",
]


class StreamconvError(Exception):
    """The root of the tree. ``what`` is the fact, ``where`` the file or tensor, ``remedy`` the next step."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(map(printable, lines))


class UsageError(StreamconvError):
    """The arguments do not make sense together."""

    exit_code = 2


class SourceError(StreamconvError):
    """The source is not there, or is not a checkpoint that streamconv knows."""

    exit_code = 3


class UnsupportedError(SourceError):
    """The source was recognised, but is not translated; the message names it."""


class AmbiguousError(SourceError):
    """The source can be read in more than one way, and nothing in it decides."""


class CapacityError(StreamconvError):
    """The job does not fit into memory or onto the disk."""

    exit_code = 4


class MemoryBudgetError(CapacityError):
    """``--max-ram`` is below the smallest budget that works for this job."""


class DiskSpaceError(CapacityError):
    """The destination's file system has too little room."""


class StorageError(StreamconvError):
    """The operating system refused a read or a write, or a file became shorter while it was read."""

    exit_code = 5


class DamagedError(StreamconvError):
    """The input is broken: truncated, inconsistent, or its checksum is wrong."""

    exit_code = 6


class UnsafeError(DamagedError):
    """The input asks for something that no data file needs."""


class DifferenceError(StreamconvError):
    """Values differ where they must not."""

    exit_code = 7


class DestinationError(StreamconvError):
    """The destination is in use, or holds a checkpoint that would be replaced."""

    exit_code = 8
