"""A process of its own that plans each conversion once, and forks a child for each run of it.

    LD_PRELOAD=faults.so python -m tests.faults.forks

It reads jobs from its input, a JSON list in a line: how to run, the words of the command line, the destination,
variables for the child, and the file for what it prints. It answers with the child's exit code. A job's variables name
the fault: see ``faults.c``.

Every tile is journaled at once, unless ``TILES`` is ``late``, and a window of waiting pages is small. So a small
checkpoint makes all the calls that a large one makes, and each run makes the same.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from streamconv.cli import convert
from streamconv.cli.main import guarded, main
from streamconv.execution import assignment, ownership, run
from streamconv.io.output import OutputFileWriter
from tests.faults import naive
from tests.processes import import_all

WINDOW_NBYTES = 32 << 10
NOWHERE = "/nowhere"
PATIENCE_SECONDS = 120
execute = convert.execute


class NarrowWriter(OutputFileWriter):
    """An output file of which few bytes wait in the page cache."""

    def __init__(self, path: Path, nbytes: int, window: int, *rest: Any, **named: Any) -> None:
        super().__init__(path, nbytes, min(window, WINDOW_NBYTES), *rest, **named)


def prepare() -> None:
    import_all()
    commit_every(0.0)
    # Nobody else works there: an owner whose file a power cut has emptied is dead, and need not be waited for.
    vars(ownership).update(_STALE_BEATS=0)
    vars(run).update(OutputFileWriter=NarrowWriter)


def commit_every(seconds: float) -> None:
    assignment._FIRST_COMMIT_SECONDS = assignment._COMMIT_SECONDS = seconds


@cache
def plan(words: tuple[str, ...]) -> tuple[Any, Any]:
    """What the command line hands to :func:`streamconv.cli.convert.execute`, but for the destination."""
    planned: list[tuple[Any, Any]] = []

    def keep(work: Any, _: Any, given: Any) -> int:
        planned.append((work, given))
        return 0

    vars(convert).update(execute=keep)
    code = main(["convert", words[0], NOWHERE, *words[1:]])
    vars(convert).update(execute=execute)
    if code != 0:
        raise SystemExit(code)
    return planned[0]


def planned(words: list[str], destination: str) -> Callable[[], int]:
    """The conversion, of which only the writing is left to do."""
    work, given = plan(tuple(words))
    return lambda: guarded(lambda _: execute(work, Path(destination), given), ["convert"])


def whole(words: list[str], destination: str) -> Callable[[], int]:
    """The conversion from its beginning."""
    return lambda: main(["convert", words[0], destination, *words[1:]])


def naively(words: list[str], destination: str) -> Callable[[], int]:
    """The writer that makes every mistake."""
    return lambda: naive.convert(Path(words[0]), Path(destination), words[1])


HOW: dict[str, Callable[[list[str], str], Callable[[], int]]] = {
    "planned": planned,
    "whole": whole,
    "naive": naively,
}


def child(call: Callable[[], int], variables: dict[str, str], out: str) -> None:
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(variables)
    if variables.get("TILES") == "late":
        commit_every(3600.0)
    signal.alarm(PATIENCE_SECONDS)
    code = 99
    try:
        code = call()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    for line in sys.stdin:
        how, words, destination, variables, out = json.loads(line)
        call = HOW[how](words, destination)
        pid = os.fork()
        if pid == 0:
            child(call, variables, out)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
