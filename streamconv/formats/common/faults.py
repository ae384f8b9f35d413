"""What a reader does where a checkpoint is not as it should be: stop at the first fault, or note each and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from streamconv.core.errors import StreamconvError

__all__ = ["COPY_AGAIN", "REMOVE_OTHERS", "Collected", "Faults", "listed"]

COPY_AGAIN = "copy the missing files from the training run's storage"
REMOVE_OTHERS = "remove the files that another run has left"

_SHOWN = 4

Opened = TypeVar("Opened")


class Faults:
    """The strict way: the first fault is raised. A conversion wants no less than the whole model."""

    def note(self, fault: StreamconvError) -> None:
        """Say that something is wrong.

        Raises:
            StreamconvError: always ``fault``; :class:`Collected` keeps it instead.
        """
        raise fault

    def opened(self, path: Path, read: Callable[[Path], Opened]) -> Opened | None:
        """What ``read`` makes of a file. None if it cannot, which only :class:`Collected` lets pass."""
        return read(path)


class Collected(Faults):
    """The tolerant way: faults are kept, and the reader goes on with what is whole.

    ``found`` are the faults in their order; ``unopened`` are files that cannot be opened, and why.
    """

    def __init__(self) -> None:
        self.found: list[StreamconvError] = []
        self.unopened: dict[Path, StreamconvError] = {}

    def note(self, fault: StreamconvError) -> None:
        """Keep a fault."""
        self.found.append(fault)

    def opened(self, path: Path, read: Callable[[Path], Opened]) -> Opened | None:
        """What ``read`` makes of a file, None if it cannot: the reason is kept."""
        try:
            return read(path)
        except StreamconvError as error:
            self.unopened[path] = error
            return None

    def knows(self, error: StreamconvError) -> bool:
        """Whether an error is one of those that were kept."""
        kept = (*self.found, *self.unopened.values())
        return any((one.what, one.where) == (error.what, error.where) for one in kept)

    def __bool__(self) -> bool:
        return bool(self.found or self.unopened)


def listed(items: Iterable[object], count: int) -> str:
    """The first of ``count`` items, and how many more there are; what follows the first is not looked at."""
    shown = [str(item) for item, _ in zip(items, range(min(count, _SHOWN)), strict=False)]
    return ", ".join(shown) + (f" and {count - _SHOWN} more" if count > _SHOWN else "")
