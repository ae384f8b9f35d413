"""Commands in processes of their own that need not start an interpreter: one has, and forks for each of them.

A start takes half a second, most of it imports. What is about the start itself, about the memory of a process, or about
a terminal starts its own.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import streamconv
from tests.places import ROOT

STREAMCONV = [sys.executable, "-m", "streamconv"]
IMPORT_ALL = "from tests.processes import import_all\nimport_all()\n"
SERVER = """
import json, os, sys
for line in sys.stdin:
    module, words, folder, variables, *files = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(variables)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = [module, *words]
        sys.exit(sys.modules[module].main())
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def import_all() -> None:
    """Import every module of the package: what a process has imported before it forks, its children need not."""
    for module in pkgutil.walk_packages(streamconv.__path__, "streamconv."):
        if module.name != "streamconv.__main__":
            importlib.import_module(module.name)


def serve(*words: str, preload: str = "") -> subprocess.Popen[str]:
    """A Python process that answers a line with a line, until this one ends; ``words`` are its command line.

    ``preload`` is a library that is loaded before the others.
    """
    variables = {**os.environ, "LD_PRELOAD": preload} if preload else None
    command = [sys.executable, *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    )
    atexit.register(process.communicate, timeout=60)
    return process


@contextmanager
def other_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed its first line, ``ready``; it is told to go on, and waited for, at the end."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate("go on\n", timeout=60)


@cache
def _server(preload: str) -> subprocess.Popen[str]:
    return serve("-c", IMPORT_ALL + SERVER, preload=preload)


def start(
    command: list[str], *words: object, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a new interpreter says, and its exit code; ``variables`` are added to the environment."""
    environment = {**os.environ, **(variables or {})}
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=False, env=environment)


def run_main(
    *words: object,
    module: str = "streamconv.cli.main",
    variables: Mapping[str, str] | None = None,
    preload: str = "",
) -> subprocess.CompletedProcess[str]:
    """What the ``main`` of a module says to the words of a command line, and its exit code.

    ``variables`` are added to the environment; ``preload`` is a library that is loaded before the others.
    """
    process = _server(preload)
    assert process.stdin is not None
    assert process.stdout is not None
    said = [*map(str, words)]
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "error")]
        job = [module, said, str(Path.cwd()), dict(variables or {}), *map(str, files)]
        print(json.dumps(job), file=process.stdin, flush=True)
        code = int(process.stdout.readline())
        out, error = (file.read_text() for file in files)
    return subprocess.CompletedProcess([module, *said], code, out, error)
