"""A source whose file system fails from some read on: exit code 5 with file and offset, and no work is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.mirror import mirrored
from tests.places import FRAMEWORKS
from tests.processes import run_main
from tests.trees import tree

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
NAME = "global_step3/layer_05-model_00-model_states.pt"


@dataclass(frozen=True)
class BadSource:
    """A checkpoint on a file system of its own, and the file that says what goes wrong there."""

    folder: Path
    trouble: Path

    @property
    def path(self) -> Path:
        return self.folder / NAME

    @property
    def middle(self) -> int:
        """A byte of a tensor, which opening the file does not read."""
        return self.path.stat().st_size // 2

    def fails(self, how: str) -> None:
        self.trouble.write_text(json.dumps({"name": NAME, "at": self.middle, "how": how}))


@pytest.fixture
def source(tmp_path: Path) -> Iterator[BadSource]:
    trouble = tmp_path / "trouble.json"
    with mirrored(BLOOM, tmp_path / "source", trouble) as folder:
        yield BadSource(folder, trouble)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run_main(BLOOM, out, "--tp", 1).returncode == 0
    return tree(out)


@pytest.mark.parametrize("io", ["direct", "pread"])
@pytest.mark.parametrize("how", ["error", "short", "end"])
def test_a_source_that_fails_on_the_way_is_resumed_when_it_works(
    how: str, io: str, source: BadSource, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """The kernel takes half a read into the page cache for the end of the file."""
    out = tmp_path / "out"
    words = "Input/output error" if how == "error" else r"\d+ are there, all were when the file was opened"
    command = ("convert", source.folder, out, "--tp", 1, "--io", io, "--engine", "serial", "--json")
    source.fails(how)
    for _ in range(2):
        done = run_main(*command)
        assert done.returncode == 5, (done.stdout, done.stderr)
        text = rf"^error: cannot read (\d+) bytes at (\d+): {words}\n  where: {source.path}\n"
        said = re.search(text, done.stderr, re.MULTILINE)
        assert said, done.stderr
        nbytes, offset = map(int, said.groups())
        assert offset + nbytes > source.middle
        assert [path.name for path in out.iterdir()] == [".streamconv"]
    source.trouble.unlink()
    finished = run_main(*command)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["resumed_nbytes"] > 0
    assert tree(out) == expected
