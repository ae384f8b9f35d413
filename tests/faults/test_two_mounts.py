"""Two runs through two mounts of one folder, where ``flock`` holds within a mount alone: still only one wins."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.fault import Fault, library, sends
from tests.faults.mirror import mirrored
from tests.faults.race import Run, at_once, while_held
from tests.faults.rivals import CALLS, MOST_CALLS, Rivals
from tests.spread import Sweep
from tests.trees import tree

Mounts = tuple[Path, Path, Path]
"""Two mounts, and the folder that both show."""


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    (real := tmp_path / "real").mkdir()
    with mirrored(real, tmp_path / "one") as one, mirrored(real, tmp_path / "two") as two:
        yield one, two, real


def through(mounts: Mounts, runs: tuple[Run, Run], name: str) -> tuple[Run, Run]:
    """The runs into one folder, the first through the one mount, the second through the other."""
    first, second = (replace(run, destination=str(mount / name)) for run, mount in zip(runs, mounts, strict=False))
    return first, second


def test_flock_holds_within_a_mount_alone_and_an_exclusive_creation_in_both(mounts: Mounts) -> None:
    one, two, real = mounts
    held = [os.open(mount / "lock", os.O_RDWR | os.O_CREAT) for mount in (one, two)]
    for number in held:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (one / "lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (one / "owner").touch(exist_ok=False)
    with pytest.raises(FileExistsError):
        (two / "owner").touch(exist_ok=False)
    assert sorted(path.name for path in real.iterdir()) == ["lock", "owner"]
    for number in held:
        os.close(number)


@pytest.mark.parametrize("leftover", [False, True], ids=["fresh", "leftover"])
def test_of_two_at_once_through_two_mounts_one_wins(
    leftover: bool, rivals: Rivals, sweep: Sweep, mounts: Mounts
) -> None:
    for number, ahead in rivals.offsets(sweep):
        out = f"{number}"
        if leftover:
            rivals.leftover(mounts[0] / out, number)
        first, second = through(mounts, rivals.into(mounts[0], ahead), out)
        ends = at_once(first, replace(second, options={**second.options, "restart": leftover}))
        rivals.check_one_won(ends, mounts[2] / out)


@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_is_stopped_is_not_overtaken_through_another_mount(
    call: str, rivals: Rivals, sweep: Sweep, mounts: Mounts
) -> None:
    for at in sweep.of(range(1, MOST_CALLS), 7):
        first, second = through(mounts, rivals.into(mounts[0]), f"{at}")
        stop = Fault(call, sends(signal.SIGSTOP), Path(first.destination), at)
        ends = while_held(replace(first, variables=stop.variables), second, library())
        rivals.check_one_won(ends, mounts[2] / f"{at}")
        if not ends[0].held:
            return
    pytest.fail(f"more than {MOST_CALLS} calls of {call}")


def test_a_run_that_was_killed_is_succeeded_through_another_mount(rivals: Rivals, mounts: Mounts) -> None:
    """And its work folder goes, though such a file system keeps the names of open files that are deleted."""
    for number in (2, 8, 14):
        rivals.leftover(mounts[0] / f"{number}", number)
        first, _ = rivals.into(mounts[1] / f"{number}")
        (end,) = at_once(first)
        assert end.code == 0, end.said
        assert tree(mounts[2] / f"{number}") == rivals.results[0]
        assert not (mounts[2] / f"{number}" / ".streamconv").exists()
