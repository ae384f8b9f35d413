"""A call that fails ends a run with the documented code and a clear line, or does no harm: nothing is published
wrongly, no success is claimed without the result, and the same command again finishes it.
"""

from __future__ import annotations

import pytest

from tests.faults.cases import Case, assert_none
from tests.faults.points import ERRORS
from tests.faults.sweeps import close_points, error_points, errors, reading_errors, reading_points
from tests.spread import Sweep

pytestmark = pytest.mark.slow


@pytest.mark.sweep(7)
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_at_any_call(name: str, case: Case, sweep: Sweep) -> None:
    assert_none(errors(case, sweep.of(error_points(case, ERRORS[name]), 40)))


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_an_error_after_it_is_decided(name: str, fresh: Case) -> None:
    """The result is whole, and no word says that it is not."""
    points = [point for point in error_points(fresh, ERRORS[name]) if point.decided]
    assert_none(errors(fresh, points))


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EROFS"])
def test_an_error_from_any_call_on(name: str, case: Case, sweep: Sweep) -> None:
    assert_none(errors(case, sweep.of(error_points(case, ERRORS[name], ever=True), 40)))


@pytest.mark.sweep(3)
def test_a_write_that_is_short_or_writes_nothing(case: Case, sweep: Sweep) -> None:
    points = [*error_points(case, "short"), *error_points(case, "end"), *error_points(case, "short", ever=True)]
    assert_none(errors(case, sweep.of(points, 60)))


@pytest.mark.sweep(3)
def test_a_disk_that_writes_nothing_any_more_does_not_hold_a_run_for_ever(fresh: Case, sweep: Sweep) -> None:
    assert_none(errors(fresh, sweep.of(error_points(fresh, "end", ever=True), 60)))


@pytest.mark.sweep(3)
def test_a_close_that_fails(case: Case, sweep: Sweep) -> None:
    """As on NFS, where a close may report what a write could not."""
    assert_none(errors(case, sweep.of(close_points(case, ERRORS["EIO"]), 3)))


@pytest.mark.sweep(3)
def test_a_sync_that_lost_what_was_written(case: Case, sweep: Sweep) -> None:
    """The error is reported once, then the system has forgotten it."""
    assert_none(errors(case, sweep.of(error_points(case, "lose"), 20)))


def test_a_sync_that_lost_what_is_not_journaled_yet(late: Case, sweep: Sweep) -> None:
    """Tiles that were written before are lost with it; and the sync that follows the error succeeds."""
    assert_none(errors(late, sweep.of(error_points(late, "lose"), 4)))


READING = {
    "error": ("look", ERRORS["EIO"]),
    "too many open files": ("open", ERRORS["EMFILE"]),
    "interrupted": ("read", ERRORS["EINTR"]),
    "short": ("read", "short"),
    "end": ("read", "end"),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", READING)
def test_a_look_at_the_source_that_fails(name: str, fresh: Case, sweep: Sweep) -> None:
    assert_none(reading_errors(fresh, sweep.of(reading_points(fresh, *READING[name]), 60)))
