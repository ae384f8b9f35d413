"""A test's files are where its mark says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.processes import STREAMCONV, run_main, start


@pytest.mark.disk
def test_what_is_about_a_disk_is_on_one(tmp_path: Path, disk: Path) -> None:
    assert tmp_path.parent == disk
    assert disk.parent == Path(tempfile.gettempdir()).resolve()


@pytest.mark.slow
def test_a_forked_process_says_what_a_new_one_says() -> None:
    for words in (("--version",), ("plan", "nowhere"), ("inspect",)):
        forked, new = run_main(*words), start(STREAMCONV, *words)
        assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)
