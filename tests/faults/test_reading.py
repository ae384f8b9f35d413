"""What the system does not deliver is storage trouble with file and offset, at every read; a file that says more than
it has is damaged.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamconv.containers.open_any import open_any
from tests.faults.fault import IO_ERROR, library
from tests.places import FRAMEWORKS
from tests.processes import start

TREE = {"w": torch.arange(500.0), "v": torch.ones(3, 4), "iteration": 3}
CORE = FRAMEWORKS / "mcore_llama_dist_tp2pp2"


def torch_zip(folder: Path) -> Path:
    torch.save(TREE, folder / "a.pt")
    return folder / "a.pt"


def torch_old(folder: Path) -> Path:
    torch.save(TREE, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def safetensors(folder: Path) -> Path:
    save_file(
        {name: value for name, value in TREE.items() if isinstance(value, torch.Tensor)}, folder / "a.safetensors"
    )
    return folder / "a.safetensors"


def distcp(folder: Path) -> Path:
    for name in ("__0_0.distcp", ".metadata"):
        shutil.copy(CORE / name, folder)
    return folder / "__0_0.distcp"


def distcp_alone(folder: Path) -> Path:
    return Path(shutil.copy(CORE / "__0_0.distcp", folder))


CONTAINERS = (torch_zip, torch_old, safetensors, distcp, distcp_alone)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """A small file of each kind, in a folder of its own."""
    made = []
    for make in CONTAINERS:
        (tmp_path / make.__name__).mkdir()
        made.append(make(tmp_path / make.__name__))
    return made


def at_each_read(how: str, paths: list[Path]) -> Iterator[tuple[Path, list[Any]]]:
    """Each file, and what opening it gave when its first read went wrong so, when its second did, and so on.

    The tensors of an opening without a fault come last.
    """
    words = [sys.executable, "-m", "tests.faults.each_read", how]
    done = start(words, *paths, variables={"LD_PRELOAD": library()})
    assert done.returncode == 0, done.stderr
    for path, outcomes in zip(paths, json.loads(done.stdout), strict=True):
        assert outcomes[-1] == sorted(open_any(path).tensors())
        assert len(outcomes) > 3
        yield path, outcomes[:-1]


def test_an_error_at_any_read_of_a_file_is_storage_trouble(paths: list[Path]) -> None:
    for path, outcomes in at_each_read(IO_ERROR, paths):
        for code, words in outcomes:
            assert code == 5
            assert re.fullmatch(
                r"cannot read [1-9]\d* bytes at \d+: Input/output error\n"
                rf"  where: {path}\n  remedy: when the storage works again, run the same command again",
                words,
            )


def test_a_short_read_is_continued(paths: list[Path]) -> None:
    for path, outcomes in at_each_read("short", paths):
        assert all(names == sorted(open_any(path).tensors()) for names in outcomes)


@pytest.mark.parametrize("how", ["end", "cut:0"])
def test_an_end_that_comes_too_early_is_storage_trouble(how: str, paths: list[Path]) -> None:
    for path, outcomes in at_each_read(how, paths):
        for code, words in outcomes:
            assert code == 5
            assert re.match(
                r"cannot read [1-9]\d* bytes at \d+: 0 are there, all were when the file was opened\n"
                rf"  where: {path}\n",
                words,
            )
