"""Signals that wait until something is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

__all__ = ["signals_held"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let the signals that end a program wait as long as this lasts; then they are sent again.

    Blocking them would not do: the system hands a signal to any thread that does not block it, such as one of numpy's,
    and Python then raises it in the main thread all the same. In another thread nothing is done, since no signal is
    raised there.
    """
    if current_thread() is not main_thread():
        yield
        return
    waiting: list[int] = []
    heard = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, lambda number, _: waiting.append(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in waiting:
            os.kill(os.getpid(), late)
