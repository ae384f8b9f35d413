"""Of two runs at once into one folder one gives its result and the other is refused, whatever comes first.

What one has published, the other never replaces. A destination may hold what a killed run left there.
"""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.fault import Fault, library, sends
from tests.faults.race import at_once, while_held
from tests.faults.rivals import CALLS, MOST_CALLS, RECORDS, Rivals
from tests.spread import Sweep
from tests.trees import tree


def test_of_two_at_once_one_wins(rivals: Rivals, sweep: Sweep, tmp_path: Path) -> None:
    for number, ahead in rivals.offsets(sweep):
        out = tmp_path / f"{number}"
        rivals.check_one_won(at_once(*rivals.into(out, ahead)), out)


def test_of_two_at_once_on_leftover_work_one_wins(rivals: Rivals, sweep: Sweep, tmp_path: Path) -> None:
    """One goes on with the work, or the other discards it."""
    for number, ahead in rivals.offsets(sweep):
        out = tmp_path / f"{number}"
        rivals.leftover(out, number)
        first, second = rivals.into(out, ahead)
        ends = at_once(first, replace(second, options={**second.options, "restart": True}))
        rivals.check_one_won(ends, out)


@pytest.mark.parametrize("leftover", [False, True], ids=["fresh", "leftover"])
def test_the_same_command_twice_at_once_gives_its_result(
    leftover: bool, rivals: Rivals, sweep: Sweep, tmp_path: Path
) -> None:
    for number, ahead in rivals.offsets(sweep):
        out = tmp_path / f"{number}"
        if leftover:
            rivals.leftover(out, number)
        first, second = rivals.into(out, ahead)
        ends = at_once(first, replace(first, delay=second.delay))
        codes = {end.code for end in ends}
        assert 0 in codes, ends
        assert codes <= {0, 8}, ends
        assert tree(out) == rivals.results[0]


def test_a_rerun_of_what_is_published_is_done_and_another_is_refused(rivals: Rivals, tmp_path: Path) -> None:
    first, second = rivals.into(tmp_path / "out")
    codes = [at_once(run)[0].code for run in (first, first, second, first)]
    assert codes == [0, 0, 8, 0]
    assert tree(tmp_path / "out") == rivals.results[0]


def test_what_a_killed_run_had_published_stays(rivals: Rivals, tmp_path: Path) -> None:
    """The other command is refused, and the same one is done."""
    published = 0
    for at in range(1, MOST_CALLS):
        first, second = rivals.into(tmp_path / f"{at}")
        kill = Fault("sync", sends(signal.SIGKILL), tmp_path / f"{at}", at)
        (end,) = at_once(replace(first, variables=kill.variables), preload=library())
        if end.code == 0:
            break
        if any((tmp_path / f"{at}" / record).exists() for record in RECORDS):
            published += 1
            assert [at_once(run)[0].code for run in (second, first)] == [8, 0]
            assert tree(tmp_path / f"{at}") == rivals.results[0]
    assert published > 0


# -- one after the other's first steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("leftover", [False, True], ids=["fresh", "leftover"])
@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_is_stopped_at_any_call_replaces_nothing(
    call: str, leftover: bool, rivals: Rivals, sweep: Sweep, tmp_path: Path
) -> None:
    """The other begins and ends meanwhile: it wins if the stopped one has not the lock yet, and is refused after."""
    if leftover:
        rivals.leftover(tmp_path / "killed", 8)
    for at in sweep.of(range(1, MOST_CALLS), 7):
        out = tmp_path / f"{at}"
        if leftover:
            shutil.copytree(tmp_path / "killed", out)
        first, second = rivals.into(out, restart=True)
        stop = Fault(call, sends(signal.SIGSTOP), out, at)
        ends = while_held(replace(first, variables=stop.variables), second, library())
        rivals.check_one_won(ends, out)
        if not ends[0].held:
            return
    pytest.fail(f"more than {MOST_CALLS} calls of {call}")
