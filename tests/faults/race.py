"""Runs of two conversions at once, forked from one parent that has planned both: they begin within a millisecond.

    python -m tests.faults.race

It reads a JSON line for each race, and answers with a line for each. A run may also be held: a fault stops its process
at a call (SIGSTOP), another run begins and ends, and the first goes on. So every order of two can be had on purpose.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from streamconv.api import verbs
from streamconv.api.options import known_options
from streamconv.cli.convert import execute
from streamconv.cli.main import guarded
from streamconv.cli.options import OutputOptions
from streamconv.core.options import Given, all_options
from tests.processes import import_all, serve

if TYPE_CHECKING:
    from streamconv.planning.plan import Plan


@dataclass(frozen=True)
class Run:
    """A conversion that begins ``delay`` seconds after it is told to; ``variables`` are added to the environment."""

    source: str
    destination: str
    options: Mapping[str, Any] = field(default_factory=dict)
    delay: float = 0.0
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How a run ended: its exit code, or minus its signal, and what it said; ``held`` if it was stopped meanwhile."""

    code: int
    said: str
    held: bool = False


def at_once(*runs: Run, preload: str = "") -> list[End]:
    """Begin all the runs together; ``preload`` is a library that is loaded before the others."""
    return _ask(runs, preload, hold=False)


def while_held(first: Run, second: Run, preload: str) -> list[End]:
    """Run ``second`` from its beginning to its end while ``first`` is stopped, if it was."""
    return _ask((first, second), preload, hold=True)


def _ask(runs: tuple[Run, ...], preload: str, *, hold: bool) -> list[End]:
    server = _server(preload)
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps({"runs": [asdict(run) for run in runs], "hold": hold}), file=server.stdin, flush=True)
    return [End(*end) for end in json.loads(server.stdout.readline())]


@cache
def _server(preload: str) -> subprocess.Popen[str]:
    return serve("-m", __name__, preload=preload)


# -- the parent --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Carry out one race after another, until there are no more lines."""
    import_all()
    for line in sys.stdin:
        asked = json.loads(line)
        runs = [Run(**run) for run in asked["runs"]]
        works = [_planned(run.source, json.dumps(run.options)) for run in runs]
        with TemporaryDirectory() as folder:
            logs = [Path(folder, str(number)) for number in range(len(runs))]
            begin = list(zip(runs, works, logs, strict=True))
            codes, held = (_one_in_the_other if asked["hold"] else _together)(begin)
            said = [log.read_text() for log in logs]
        print(json.dumps(list(zip(codes, said, [held, False], strict=False))), flush=True)


@cache
def _planned(source: str, options: str) -> Plan:
    """The plan of a conversion, made once."""
    return verbs.planned(Path(source), _given(json.loads(options)))


def _given(options: Mapping[str, Any]) -> Given:
    return Given.keywords({**known_options(), **all_options([OutputOptions])}, {**options, "quiet": True})


Begin = tuple[Run, "Plan", Path]


def _together(begin: list[Begin]) -> tuple[list[int], bool]:
    pids = [_forked(*each) for each in begin]
    return [_code(os.waitpid(pid, 0)[1]) for pid in pids], False


def _one_in_the_other(begin: list[Begin]) -> tuple[list[int], bool]:
    """The exit codes, and whether the first one was stopped."""
    first = _forked(*begin[0])
    status = os.waitpid(first, os.WUNTRACED)[1]
    held = os.WIFSTOPPED(status)
    second = _code(os.waitpid(_forked(*begin[1]), 0)[1])
    if held:
        os.kill(first, signal.SIGCONT)
        status = os.waitpid(first, 0)[1]
    return [_code(status), second], held


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def _forked(run: Run, work: Plan, log: Path) -> int:
    """Begin a run in a process of its own; returns its number."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        _carry_out(run, work)
    return pid


def _carry_out(run: Run, work: Plan) -> None:
    """Carry out a run as the command line does, and end the process with its exit code."""
    time.sleep(run.delay)
    os.environ.update(run.variables)
    code = guarded(lambda _: execute(work, Path(run.destination), _given(run.options)), [])
    sys.stderr.flush()
    os._exit(code)  # what else the parent would do at its end is the parent's


if __name__ == "__main__":
    main()
