"""Files that cost more than their size are refused, or read at the cost of their size."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz.cases import CASES
from tests.processes import run_main

LONGEST, LARGEST = 10, 300 << 20
VERBS = (("inspect", "--stats", "--check", "--tree", "--globals"), ("inspect", "--json"), ("verify",))


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_file_costs_what_its_size_allows(case: str, tmp_path: Path) -> None:
    path = tmp_path / case
    path.write_bytes(CASES[case]())
    for words in (
        ["inspect", "--stats", "--check", "--tree", "--globals"],
        ["inspect", "--json"],
        ["verify"],
        ["diff", path],
    ):
        start = time.monotonic()
        done = run_main(*words, path)
        said = done.stdout + done.stderr
        assert done.returncode in (0, 3, 6), said
        assert time.monotonic() - start < LONGEST
        assert "\x1b" not in said
        assert len(said) < 1 << 20
