"""Runs in which one call goes wrong: what each said, and which calls it made."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.faults.fault import error, library
from tests.processes import serve

__all__ = ["ERRORS", "LATE", "NO_EXCHANGE", "Call", "Done", "Point", "calls_of", "run"]

ERRORS = {name: error(getattr(errno, name)) for name in ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE", "EINTR")}
NO_EXCHANGE = {"FAULT_NO_EXCHANGE": "1"}
LATE = {"TILES": "late"}


@dataclass(frozen=True, slots=True)
class Done:
    """The exit code of a run, or minus the signal that ended it, and all that it printed."""

    code: int
    text: str

    @property
    def last_words(self) -> str:
        return " / ".join(line.strip() for line in self.text.strip().splitlines()[-3:])


@dataclass(frozen=True, slots=True)
class Call:
    """A call that changed something, or looked, as ``faults.c`` notes it; ``data`` is what was written."""

    name: str
    path: str
    other: str
    offset: int
    nbytes: int
    inode: int
    result: int
    data: bytes

    @property
    def is_write(self) -> bool:
        return self.name in ("write", "pwrite")

    @property
    def is_sync(self) -> bool:
        return self.name in ("fsync", "fdatasync", "sync_file_range")


@dataclass(frozen=True, slots=True)
class Point:
    """The ``number``-th of the calls of a ``kind`` below a folder, and what happens at it.

    ``ever``: at all later ones too. ``decided``: it is after the call that puts the commit record into place.
    """

    number: int
    how: str
    call: Call
    kind: str = "change"
    ever: bool = False
    decided: bool = False

    @property
    def variables(self) -> dict[str, str]:
        variables = {"CALL": self.kind, "HOW": self.how, "AT": str(self.number), **({"EVER": "1"} if self.ever else {})}
        return {f"FAULT_{name}": word for name, word in variables.items()}

    def __str__(self) -> str:
        places = " to ".join(path for path in (self.call.path, self.call.other) if path)
        return f"{self.how}{' for ever' if self.ever else ''} at call {self.number}: {self.call.name} {places}"


@cache
def _server() -> subprocess.Popen[str]:
    return serve("-m", "tests.faults.forks", preload=library())


def run(
    words: Sequence[object],
    destination: Path,
    variables: Mapping[str, str] | None = None,
    *,
    how: str = "planned",
    below: Path | None = None,
) -> Done:
    """Convert in a child of a process that has planned it: ``words`` are the source and the options.

    Args:
        words: of the command line.
        destination: its folder.
        variables: those of a fault, without ``FAULT_BELOW``.
        how: ``planned``, ``whole`` to plan again, too, or ``naive``.
        below: the folder in which calls count; else the one that the destination is in.
    """
    process = _server()
    assert process.stdin is not None
    assert process.stdout is not None
    out = Path(library()).with_name(f"out-{os.getpid()}")
    every = {"FAULT_BELOW": str(below or destination.parent), **(variables or {})}
    print(json.dumps([how, [*map(str, words)], str(destination), every, str(out)]), file=process.stdin, flush=True)
    return Done(int(process.stdout.readline()), out.read_text(errors="replace"))


def calls_of(
    words: Sequence[object],
    destination: Path,
    variables: Mapping[str, str] | None = None,
    *,
    kind: str = "change",
    how: str = "planned",
    below: Path | None = None,
) -> list[Call]:
    """The calls of a run that nothing is made to happen to, with their data."""
    log = Path(library()).with_name(f"log-{os.getpid()}")
    log.unlink(missing_ok=True)
    noted = {"FAULT_CALL": kind, "FAULT_LOG": str(log), "FAULT_DATA": "1", **(variables or {})}
    run(words, destination, noted, how=how, below=below)
    return list(_read(log.read_text())) if log.exists() else []


def _read(text: str) -> Iterator[Call]:
    for line in text.splitlines():
        name, path, other, *numbers, data = line.split("\t")
        offset, nbytes, inode, result = map(int, numbers)
        yield Call(name, path, other, offset, nbytes, inode, result, bytes.fromhex(data))
