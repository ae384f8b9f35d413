"""Count bytes from several threads, for the progress."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

__all__ = ["Counted"]


class Counted:
    """The bytes that are done, of those that are expected."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None, done: int = 0) -> None:
        """``progress`` is called with (bytes done, bytes in all) whenever some are added, from the thread that did."""
        self._done, self._total, self._progress, self._lock = done, total, progress, Lock()

    def expect(self, nbytes: int) -> None:
        """Add bytes that turned out to be needed."""
        with self._lock:
            self._total += nbytes

    def __call__(self, nbytes: int) -> None:
        """Add bytes that are done."""
        with self._lock:
            self._done += nbytes
            done, total = self._done, self._total
        if self._progress is not None:
            self._progress(done, total)
