"""A memory cgroup of version 1 for a command of a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

CGROUP_V1 = Path("/sys/fs/cgroup/memory")
_number = count()


@dataclass(frozen=True)
class MemoryCgroup:
    """A cgroup with a limit, and no swap to go to."""

    folder: Path

    def words(self, command: Sequence[str]) -> list[str]:
        """The command that goes into the cgroup and then becomes ``command``."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{self.folder}/cgroup.procs", *command]

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """What a command says in the cgroup, and its exit code."""
        return subprocess.run(self.words(command), capture_output=True, text=True, check=False)

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed because they wanted more than the limit."""
        lines = (self.folder / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])


@contextmanager
def memory_cgroup(nbytes: int) -> Iterator[MemoryCgroup]:
    """A fresh cgroup of so many bytes below the one that the tests run in; skips the test where there can be none."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    paths = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    if os.geteuid() != 0 or not paths or not os.access(CGROUP_V1, os.W_OK):
        pytest.skip("needs root and a writable cgroup v1")
    parent = CGROUP_V1 / paths[0].lstrip("/")
    folder = (parent if parent.is_dir() else CGROUP_V1) / f"streamconv-test-{os.getpid()}-{next(_number)}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(nbytes))
        (folder / "memory.swappiness").write_text("0")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"needs a writable cgroup v1: {error}")
    try:
        yield MemoryCgroup(folder)
    finally:
        folder.rmdir()
