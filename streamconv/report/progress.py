"""Progress with bytes, rate and time left: a bar on a terminal, a plain line now and then elsewhere.

What draws it must not count: a conversion has the same floor of memory on a terminal as elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import TextIO

from streamconv.memory.budget import format_bytes

__all__ = ["has_cursor", "progress_bar", "without_bar"]

_LINE_SECONDS, _BAR_SECONDS = 10.0, 0.1
_BAR_SIGNS = 12
# To the start of the line, and delete it [ECMA-48: CR, EL].
_ANEW = "\r\x1b[2K"


def has_cursor(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can write a line anew."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def without_bar(stream: TextIO) -> str:
    """What to write before a line, so that a bar which may stand there goes; it is drawn again below."""
    return _ANEW if has_cursor(stream) else ""


@contextmanager
def progress_bar(
    stream: TextIO, *, quiet: bool, verb: str = "converting"
) -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with (bytes done, bytes in all) from any thread; None if there is nothing to show."""
    if quiet:
        yield None
    elif has_cursor(stream):
        bar = _Bar(stream, verb)
        try:
            yield bar.show
        finally:
            bar.end()
    else:
        yield _Lines(stream, verb).show


class _Lines:
    """A line every few seconds, and at the end."""

    seconds = _LINE_SECONDS

    def __init__(self, stream: TextIO, verb: str) -> None:
        self.stream, self.verb, self.lock = stream, verb, Lock()
        self.began = self.last = time.monotonic()

    def show(self, done: int, total: int) -> None:
        with self.lock:
            now = time.monotonic()
            if now - self.last < self.seconds and done < total:
                return
            self.last = now
            rate = done / (now - self.began)
            left = (total - done) / rate if rate else 0.0
            share = done / total if total else 1.0
            words = f"{format_bytes(done)} of {format_bytes(total)} ({int(100 * share)}%)"
            self.write(f"{words}, {format_bytes(rate)}/s, {left:.0f} s left", share)

    def write(self, words: str, share: float) -> None:
        print(f"{self.verb}: {words}", file=self.stream, flush=True)


class _Bar(_Lines):
    """A line that is written anew, and is gone at the end."""

    seconds = _BAR_SECONDS

    def write(self, words: str, share: float) -> None:
        signs = round(share * _BAR_SIGNS)
        line = f"{self.verb} [{'#' * signs}{'-' * (_BAR_SIGNS - signs)}] {words}"
        print(f"{_ANEW}{line[: self._width() - 1]}", end="", file=self.stream, flush=True)

    def end(self) -> None:
        with self.lock:
            print(_ANEW, end="", file=self.stream, flush=True)

    def _width(self) -> int:
        with suppress(OSError):
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        return 80
