"""Calls of the C library that go wrong: an error, a short read, an end, a file that becomes shorter, a signal."""

from __future__ import annotations

import atexit
import errno
import shutil
import signal
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.processes import run_main, start

SOURCE = Path(__file__).with_name("faults.c")


@dataclass(frozen=True)
class Fault:
    """The ``at``-th ``call`` on a path below ``below`` goes wrong, or ``ever`` after too: see ``faults.c``."""

    call: str
    how: str
    below: Path
    at: int = 1
    ever: bool = False

    @property
    def variables(self) -> dict[str, str]:
        variables = {"CALL": self.call, "HOW": self.how, "BELOW": str(self.below), "AT": str(self.at)}
        return {f"FAULT_{name}": word for name, word in {**variables, **({"EVER": "1"} if self.ever else {})}.items()}

    def run(self, *words: object, module: str = "streamconv.cli.main") -> subprocess.CompletedProcess[str]:
        """What a command line says in a process that has begun before, and its exit code."""
        return run_main(*words, module=module, variables=self.variables, preload=library())

    def start(self, command: list[str], *words: object) -> subprocess.CompletedProcess[str]:
        """What a new process says, and its exit code."""
        return start(command, *words, variables={**self.variables, "LD_PRELOAD": library()})


def error(number: int) -> str:
    return f"error:{number}"


def sends(number: signal.Signals) -> str:
    return f"signal:{number.value}"


IO_ERROR = error(errno.EIO)


@cache
def library() -> str:
    """The path of the library; skips the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    made = Path(folder.name, "faults.so")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl"], check=True)
    return str(made)
