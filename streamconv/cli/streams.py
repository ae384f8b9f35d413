"""Standard streams whose failure decides nothing: the work goes on when whoever read its messages is gone."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from streamconv.core.errors import StorageError

__all__ = ["LastingStream", "check_printed", "lasting_streams"]


class LastingStream:
    """A text stream that becomes silent at its first error, which is kept in ``failure``.

    Its file becomes the null device then, so that nothing fails when the interpreter flushes its streams at the end.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, if the stream still takes any; returns the number of its characters."""
        self._attempt(lambda: self._write(text))
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            # A path is bytes, and need not be text; a terminal need not know all letters.
            self.stream.write(text.encode(self.stream.encoding, "backslashreplace").decode(self.stream.encoding))

    def flush(self) -> None:
        """Hand on what is buffered."""
        self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self.failure = error
            _become_null(self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard streams that last, for as long as a command runs.

    One that was closed before the start becomes the null device: the next file that is opened would get its number, and
    messages of the interpreter would be written into it.
    """
    for number in (0, 1, 2):
        if not _is_open(number):
            _become_null(number)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        cast("TextIO", LastingStream(os.fdopen(number, "w", closefd=False) if stream is None else stream))
        for number, stream in enumerate(before, start=1)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def check_printed() -> None:
    """Check that what was to be printed on stdout has been.

    Raises:
        StorageError: the system refused it. A reader that has gone away has got what it wanted.
    """
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is not None and failure.errno != errno.EPIPE:
        raise StorageError(f"the result could not be printed: {failure.strerror}", where="stdout")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _become_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
