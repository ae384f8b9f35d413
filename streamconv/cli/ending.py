"""How a signal ends the program: in words, whenever it comes.

While the program is imported there is nothing to clean up, and a signal ends it at once. While it works, a signal is an
exception, so that what is staged is cleaned up on the way out. When its result is printed, nothing is left to be ended.
This module imports next to nothing, since it is the first that is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = [
    "Interrupted",
    "Outcome",
    "Terminated",
    "end_at_once",
    "ignore_signals",
    "last_words",
    "outcome",
    "signals_raised",
    "tell",
]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SOON_SECONDS = 0.05


class Terminated(BaseException):
    """SIGTERM or SIGHUP: ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupted(KeyboardInterrupt):
    """SIGINT. After a bare KeyboardInterrupt that passes through an ``exec``, Python ends itself by SIGINT, whatever is
    said and returned.
    """

    number = int(signal.SIGINT)


class Outcome:
    """What a signal would leave behind if it came now, in words."""

    nothing = "no checkpoint was changed"

    def __init__(self) -> None:
        self.words = self.nothing

    def of(self, number: int) -> tuple[int, str]:
        """The exit code for a signal, and its last words."""
        return 128 + number, f"{'interrupted' if number == signal.SIGINT else 'terminated'}; {self.words}"


outcome = Outcome()


def end_at_once() -> None:
    """Let a signal end the process there and then, with its last words."""
    for number in _heard():
        signal.signal(number, _end)


@contextmanager
def signals_raised() -> Iterator[None]:
    """Let a signal raise :class:`Interrupted` or :class:`Terminated`, as long as this lasts."""
    before, hook = {number: signal.getsignal(number) for number in _heard()}, sys.unraisablehook
    for number in before:
        signal.signal(number, _raise)
    sys.unraisablehook = _send_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let signals do nothing from now on: it has been decided how the program ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def last_words(end: Interrupted | Terminated) -> tuple[int, str]:
    """The exit code for a signal that was raised, and what to say; no further signal comes in between."""
    ignore_signals()
    return outcome.of(end.number)


def tell(words: str) -> None:
    """Say something on stderr, if anybody listens."""
    with suppress(OSError):
        os.write(2, f"{words}\n".encode())


def _heard() -> list[signal.Signals]:
    """The signals that are not ignored: nohup wants SIGHUP to be, and a shell SIGINT for what runs behind it.

    There are none outside the main thread, which gets all signals and alone may say what they do.
    """
    from threading import current_thread, main_thread

    if current_thread() is not main_thread():
        return []
    return [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def _raise(number: int, _: FrameType | None) -> None:
    raise Interrupted if number == signal.SIGINT else Terminated(number)


def _send_again(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception was raised where Python can only print it, as in a destructor: a little
    later, when that is over.
    """
    if isinstance(lost.exc_value, Interrupted | Terminated):
        from threading import Timer

        # Where a machine is so busy that it comes again before this has returned, it is lost here too.
        while True:
            with suppress(Interrupted, Terminated):
                Timer(_SOON_SECONDS, os.kill, (os.getpid(), lost.exc_value.number)).start()
                return
    else:
        sys.__unraisablehook__(lost)


def _end(number: int, _: FrameType | None) -> None:
    code, words = outcome.of(number)
    tell(words)
    os._exit(code)
