"""A power cut at any moment of a run, whatever of what was not synced the disk has kept: a commit record never stands
beside data that is not whole, and the same command again gives the bytes of a run that nothing happened to.
"""

from __future__ import annotations

import random

import pytest

from tests.faults.cases import Case, assert_none
from tests.faults.power import Cut, cuts, findings_in_memory, findings_of_reruns
from tests.spread import Sweep

pytestmark = pytest.mark.slow

RERUNS = 500


@pytest.fixture
def some(case: Case, sweep: Sweep) -> list[Cut]:
    """The states of the disk that differ, of cuts at some steps; all steps at which names change are among them."""
    last = case.published
    steps = {*sweep.of(range(last - 16), 24), *sweep.of(range(last - 16, len(case.calls) + 1), 2)}
    return list({cut.digest: cut for cut in cuts(case, sorted(steps))}.values())


def test_no_record_beside_data_that_is_not_whole(case: Case, some: list[Cut]) -> None:
    assert_none(findings_in_memory(case, some))


def test_the_same_command_again_after_a_power_cut(case: Case, some: list[Cut], sweep: Sweep) -> None:
    chosen = random.Random(case.target.name).sample(some, min(RERUNS, len(some)))
    assert_none(findings_of_reruns(case, sweep.of(chosen, 40)))
