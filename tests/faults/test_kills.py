"""A run that is killed before any call that changes something, or in the middle of a write, leaves the old checkpoint
or the new, never a mixture; and the same command again gives the bytes of a run that nothing happened to.
"""

from __future__ import annotations

import pytest

from tests.faults.cases import Case, assert_none
from tests.faults.points import Point
from tests.faults.sweeps import kill_points, kills, kills_while_it_goes_on
from tests.spread import Sweep

pytestmark = pytest.mark.slow


def test_killed_at_any_call(case: Case, sweep: Sweep) -> None:
    assert_none(kills(case, sweep.of(kill_points(case.calls), 40)))


def test_killed_while_names_change(case: Case, sweep: Sweep) -> None:
    """From the end of the data on, where most can be lost: more of these points than of all."""
    last = case.published
    points = [point for point in kill_points(case.calls) if last - 16 <= point.number]
    assert_none(kills(case, sweep.of(points, 5)))


def test_killed_where_two_names_cannot_be_exchanged(stepwise: Case, sweep: Sweep) -> None:
    last = stepwise.published
    points = [point for point in kill_points(stepwise.calls) if last - 24 <= point.number]
    assert_none(kills(stepwise, sweep.of(points, 8)))


def first_kills(case: Case) -> list[Point]:
    """When the first tiles are journaled, when half of the names are changed, and at the call that decides."""
    journaled = [n for n, call in enumerate(case.calls, 1) if call.path.endswith("journal") and call.is_sync]
    renames = [n for n, call in enumerate(case.calls, 1) if call.name in ("rename", "exchange")]
    numbers = {journaled[2] + 1, renames[len(renames) // 2], case.published, case.published + 1}
    return [Point(number, "kill", case.calls[number - 1]) for number in sorted(numbers)]


def test_killed_again_while_it_goes_on(case: Case, sweep: Sweep) -> None:
    for first in first_kills(case):
        case.reset()
        case.run(first)
        points = kill_points(case.calls_now())
        assert_none(kills_while_it_goes_on(case, first, sweep.of(points, 60)))
