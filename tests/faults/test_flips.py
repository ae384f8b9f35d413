"""What an interrupted run left is not trusted: whatever has happened to its journal or to its staged files, the same
command ends with the right bytes, or is refused in words, and never publishes wrong ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cases import Case, assert_none
from tests.faults.flips import HOW, changed, interrupted
from tests.spread import Sweep

pytestmark = pytest.mark.slow


def test_what_was_left_has_changed(fresh: Case, tmp_path: Path, sweep: Sweep) -> None:
    left = interrupted(fresh, tmp_path)
    assert left.journal.count(b"\n") > 4
    trials = [(way.__name__, number) for way, times in HOW.items() for number in sweep.of(range(times), 30)]
    assert_none(changed(fresh, left, trials))
