"""Progress with bytes, rate and time left: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TextIO

from streamconv.memory.budget import format_bytes

__all__ = ["progress_bar"]

_LINE_SECONDS = 10.0


@contextmanager
def progress_bar(
    stream: TextIO, *, quiet: bool, verb: str = "converting"
) -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with (bytes done, bytes in all) from any thread; None if there is nothing to show."""
    if quiet:
        yield None
    elif stream.isatty():
        with _bar(stream, verb) as show:
            yield show
    else:
        lines = _Lines(stream, verb)
        yield lines.show
        lines.end()


@contextmanager
def _bar(stream: TextIO, verb: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """A line every ten seconds, and one at the end of each pass."""

    def __init__(self, stream: TextIO, verb: str) -> None:
        self.stream, self.verb, self.lock = stream, verb, Lock()
        self.began = self.last = time.monotonic()
        self.done = self.total = 0

    def show(self, done: int, total: int) -> None:
        with self.lock:
            if self.done == self.total and done < self.done:
                self.end()  # another pass begins
            self.done, self.total = max(done, self.done), total
            if time.monotonic() - self.last >= _LINE_SECONDS and done < total:
                self.print()

    def end(self) -> None:
        """Print the last line of a pass."""
        if self.total:
            self.print()
        self.began = time.monotonic()
        self.done = self.total = 0

    def print(self) -> None:
        self.last = now = time.monotonic()
        rate = self.done / max(now - self.began, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        share = 100 * self.done // self.total
        words = f"{format_bytes(self.done)} of {format_bytes(self.total)} ({share}%)"
        print(f"{self.verb}: {words}, {format_bytes(rate)}/s, {left:.0f} s left", file=self.stream, flush=True)
