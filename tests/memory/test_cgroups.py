"""A conversion in a memory cgroup of exactly its budget, without swap: it ends as documented, and is never killed."""

from __future__ import annotations

import filecmp
import os
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch

from tests import hf_models
from tests.memory.cgroup import memory_cgroup
from tests.processes import STREAMCONV, run_main
from tests.spread import Sweep

pytestmark = [pytest.mark.disk, pytest.mark.slow]

# Some 30 MB each.
MODELS = {
    "bloom": {"hidden_size": 512, "n_layer": 4, "vocab_size": 8192},
    "llama": {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 8192},
    "gpt_neox": {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 8192},
}
TARGETS = {
    "megatron-legacy": ("deepspeed", "--tp", "1", "--pp", "1"),
    "deepspeed": ("deepspeed", "--tp", "4", "--pp", "1"),
    "huggingface": ("deepspeed",),
    "megatron-core": ("llama", "--tp", "2"),
    "megatron-core in torch": ("llama", "--container", "torch", "--tp", "2", "--pp", "2"),
    "gpt-neox": ("gpt_neox", "--tp", "2", "--pp", "2"),
}
WORK = (
    (),
    ("--jobs", "1"),
    ("--jobs", "4"),
    ("--block-size", "256K"),
    ("--jobs", "2", "--block-size", "1M"),
)
JOBS = tuple(product(TARGETS, ("direct", "pread"), WORK))
MIB = 1 << 20
BUDGETS = tuple(nbytes * MIB for nbytes in (40, 56, 64, 96, 192))
"""The first is less than Python and its libraries need. In the last, all of the above fit."""


@dataclass(frozen=True)
class Sources:
    """A checkpoint for each model, and what each target makes of it where memory is plenty."""

    folders: dict[str, Path]
    results: dict[str, Path]

    def words(self, target: str, out: Path, *more: str) -> list[str]:
        source, *layout = TARGETS[target]
        return ["convert", str(self.folders[source]), str(out), "--to", target.partition(" ")[0], *layout, *more]


@pytest.fixture(scope="module")
def sources(disk: Path) -> Sources:
    folders = {name: disk / f"memory-{name}" for name in (*MODELS, "deepspeed")}
    for name, changes in MODELS.items():
        hf_models.make(name, folders[name], dtype=torch.bfloat16, **changes)
    made = run_main(folders["bloom"], folders["deepspeed"], "--to", "deepspeed", "--tp", 2, "--pp", 2)
    assert made.returncode == 0, made.stderr
    known = Sources(folders, {name: disk / f"memory-to {name}" for name in TARGETS})
    for name, out in known.results.items():
        assert run_main(*known.words(name, out)).returncode == 0
    return known


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def evict(folder: Path) -> None:
    """Let the page cache forget a folder: what is read again is then of the cgroup that reads it."""
    for path in files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check_same_files(folder: Path, expected: Path) -> None:
    names = [str(path.relative_to(expected)) for path in files(expected)]
    assert names == [str(path.relative_to(folder)) for path in files(folder)]
    assert filecmp.cmpfiles(folder, expected, names, shallow=False) == (names, [], [])


def test_what_is_in_the_budget_is_in_the_cgroup(sources: Sources, sweep: Sweep, tmp_path: Path) -> None:
    codes: dict[int, set[int]] = {nbytes: set() for nbytes in BUDGETS}
    for number, ((target, io, work), nbytes) in enumerate(sweep.of(tuple(product(JOBS, BUDGETS)), 43)):
        out = tmp_path / f"{number}"
        words = sources.words(target, out, "--io", io, *work, "--max-ram", str(nbytes))
        evict(sources.folders[TARGETS[target][0]])
        with memory_cgroup(nbytes) as cgroup:
            done = cgroup.run([*STREAMCONV, *words])
            assert cgroup.kills == 0, words
        codes[nbytes].add(done.returncode)
        if done.returncode == 0:
            check_same_files(out, sources.results[target])
        else:
            assert done.returncode == 4, (words, done.stderr)
            assert re.search(r"workable floor|do not fit", done.stderr), (words, done.stderr)
            assert not out.exists()
    assert codes[BUDGETS[0]] <= {4}
    assert codes[BUDGETS[-1]] <= {0}
