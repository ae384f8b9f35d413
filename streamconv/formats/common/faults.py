"""What a reader does with a fault in a checkpoint: stop at the first, or note each and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from streamconv.core.errors import StorageError, StreamconvError

__all__ = ["COPY_AGAIN", "REMOVE_OTHERS", "Collected", "Faults", "listed"]

COPY_AGAIN = "copy the missing files from the training run's storage"
REMOVE_OTHERS = "remove the files that another run has left"

_SHOWN = 4

Opened = TypeVar("Opened")


class Faults:
    """Strict: the first fault is raised, because a conversion needs the whole model."""

    def note(self, fault: StreamconvError) -> None:
        """Report a fault.

        Raises:
            StreamconvError: always ``fault``; :class:`Collected` keeps it instead.
        """
        raise fault

    def opened(self, path: Path, read: Callable[[Path], Opened]) -> Opened | None:
        """The result of ``read``; its error is raised. :class:`Collected` returns None instead."""
        return read(path)


class Collected(Faults):
    """Tolerant: faults are kept, and the reader goes on with the rest.

    ``found`` lists the faults in order; ``unopened`` maps files that cannot be opened to the reason.
    """

    def __init__(self) -> None:
        self.found: list[StreamconvError] = []
        self.unopened: dict[Path, StreamconvError] = {}

    def note(self, fault: StreamconvError) -> None:
        """Keep a fault."""
        self.found.append(fault)

    def opened(self, path: Path, read: Callable[[Path], Opened]) -> Opened | None:
        """The result of ``read``, None if it fails; its error is kept.

        Raises:
            StorageError: the system refused to read, which is no fault of the checkpoint.
        """
        try:
            return read(path)
        except StorageError:
            raise
        except StreamconvError as error:
            self.unopened[path] = error
            return None

    def knows(self, error: StreamconvError) -> bool:
        """Whether an error is one of those that were kept."""
        kept = (*self.found, *self.unopened.values())
        return any((fault.what, fault.where) == (error.what, error.where) for fault in kept)

    def __bool__(self) -> bool:
        return bool(self.found or self.unopened)


def listed(items: Iterable[object], count: int) -> str:
    """The first of ``count`` items, and how many more there are; only the first are read from ``items``."""
    shown = [str(item) for item, _ in zip(items, range(min(count, _SHOWN)), strict=False)]
    return ", ".join(shown) + (f" and {count - _SHOWN} more" if count > _SHOWN else "")
