"""The checks of this folder find the faults of a writer that makes every mistake; so where they find none, it says
something.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.cases import Case, Target, prepare
from tests.faults.naive import RECORD
from tests.faults.points import ERRORS
from tests.faults.power import cuts, findings_in_memory, findings_of_reruns
from tests.faults.sweeps import error_points, errors, kill_points, kills

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(random.Random(name).randbytes(5000))
    (folder / RECORD).write_text("3\n")
    return folder


@pytest.fixture
def naive(source: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """The naive writer, with its record ``first``, in the ``middle`` or ``last``."""
    words = (str(source), request.param)
    return prepare(Target("naive", words, RECORD, is_flat=True, how="naive"), tmp_path / "case")


@pytest.mark.parametrize("naive", ["first", "middle"], indirect=True)
def test_a_kill_after_the_record_is_seen_to_leave_a_part(naive: Case) -> None:
    found = list(kills(naive, kill_points(naive.calls)))
    assert any("a loader finds" in words for words in found)


@pytest.mark.parametrize("naive", ["first", "middle", "last"], indirect=True)
def test_a_file_that_is_taken_for_whole_is_seen_not_to_be(naive: Case) -> None:
    found = list(kills(naive, kill_points(naive.calls)))
    assert any("the same command again" in words and "other bytes" in words for words in found)


@pytest.mark.parametrize("how", [ERRORS["EIO"], ERRORS["ENOSPC"]])
@pytest.mark.parametrize("naive", ["last"], indirect=True)
def test_a_success_without_the_result_is_seen(how: str, naive: Case) -> None:
    found = list(errors(naive, error_points(naive, how)))
    assert any("it ends with 0 without the result" in words for words in found)


@pytest.mark.parametrize("naive", ["first", "middle", "last"], indirect=True)
def test_bytes_that_no_sync_made_durable_are_seen_to_be_lost(naive: Case) -> None:
    """Also if the record is written last."""
    some = list(cuts(naive))
    found = list(findings_in_memory(naive, some))
    assert any("a loader finds" in words for words in found)
    assert any("all was done" in words for words in found)
    assert any("other bytes" in words for words in findings_of_reruns(naive, some[::7]))
