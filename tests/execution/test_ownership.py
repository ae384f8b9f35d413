"""A work folder has one owner: a live one is never succeeded, a dead one by one run only."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from streamconv.core.errors import DestinationError
from streamconv.execution import ownership
from streamconv.execution.ownership import Ownership
from streamconv.execution.processes import RunningProcess, state_of
from tests.processes import other_process

BEAT = 0.05
# Owns the folder until it gets a line. Without locks: as where flock is local to a mount, or is not there.
OWNS = """
import sys
from pathlib import Path
from streamconv.execution import ownership
from tests.execution.test_ownership import without_locks
ownership.fcntl = without_locks()
owner = ownership.Ownership(Path(sys.argv[1]), beat_seconds=float(sys.argv[2]))
owner.take()
print("ready", flush=True)
input()
owner.give_up()
"""


class without_locks:  # noqa: N801 - stands for the module fcntl
    LOCK_EX, LOCK_NB, LOCK_UN = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN

    def flock(self, *_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks there")


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What flock decides, the tests of staging show."""
    monkeypatch.setattr(ownership, "fcntl", without_locks())


def another(work: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    return other_process(OWNS, work, BEAT)


def take(work: Path, notice: Callable[[str], None] = lambda _: None) -> Ownership:
    owner = Ownership(work, notice, BEAT)
    owner.take()
    return owner


def names(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir())


def owner_file(work: Path, number: int = 1, **changes: Any) -> Path:
    """An owner file of a process that is alive, and is this one but for the changes."""
    facts = {name: getattr(RunningProcess.this(), name) for name in RunningProcess.__slots__}
    work.mkdir(exist_ok=True)
    path = work / f"owner.{number}"
    path.write_text(f"{0:020d}\n{json.dumps(facts | changes)}\n")
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "out" / ".streamconv"


def test_an_owned_folder_has_its_owners_file_and_goes_with_it(work: Path) -> None:
    owner = take(work)
    assert names(work) == ["lock", "owner.1"]
    _, text = (work / "owner.1").read_text().splitlines()
    assert json.loads(text)["pid"] == os.getpid()
    owner.confirm()
    owner.give_up()
    assert list(work.parent.iterdir()) == []


def test_a_folder_with_work_in_it_stays_without_an_owner(work: Path) -> None:
    owner = take(work)
    (work / "journal").write_text("")
    owner.give_up()
    assert names(work) == ["journal", "lock"]
    take(work).give_up()


def test_a_live_owner_is_not_succeeded(work: Path) -> None:
    with another(work) as process:
        with pytest.raises(DestinationError, match=rf"is writing there \(process {process.pid} on ") as caught:
            take(work)
        assert str(work.parent) in str(caught.value)
        assert names(work) == ["lock", "owner.1"]
    take(work).give_up()


def test_a_live_owner_in_this_process_is_not_succeeded(work: Path) -> None:
    owner = take(work)
    with pytest.raises(DestinationError, match=f"process {os.getpid()}"):
        take(work)
    owner.give_up()
    take(work).give_up()


def test_a_killed_owner_is_succeeded_at_once(work: Path) -> None:
    with another(work) as process:
        process.kill()
        process.wait()
    waits: list[str] = []
    owner = take(work, waits.append)
    assert (names(work), waits) == (["lock", "owner.2"], [])
    owner.give_up()


def test_a_killed_owner_that_nobody_has_waited_for_is_dead(work: Path) -> None:
    with another(work) as process:
        process.kill()
        while (state_of(process.pid) or ("", 0))[0] != "Z":
            time.sleep(0.01)
        take(work).give_up()


def test_another_process_with_the_number_of_a_dead_one_is_not_its_owner(work: Path) -> None:
    with another(work.parent / "elsewhere") as process:
        owner_file(work, pid=process.pid, start=1)
        take(work).give_up()


def test_an_owner_of_this_process_that_is_not_in_it_any_more_is_dead(work: Path) -> None:
    work.parent.mkdir()
    owner_file(work)
    take(work).give_up()


@pytest.mark.parametrize(
    "changes", [{"boot": "of another host"}, {"pid_namespace": 1}, {"boot": ""}, None], ids=["boot", "pids", "", "torn"]
)
def test_of_an_owner_elsewhere_the_heartbeat_tells(changes: dict[str, Any] | None, work: Path) -> None:
    work.parent.mkdir()
    path = owner_file(work, 3, host="there", **(changes or {}))
    if changes is None:
        path.write_bytes(b"")
    waits: list[str] = []
    owner = take(work, waits.append)
    assert names(work) == ["lock", "owner.4"]
    who = "an owner that has not said who it is" if changes is None else f"process {os.getpid()} on there"
    assert waits == [f"waiting up to 1 s to see whether {who}, which works there, is alive"]
    owner.give_up()


@pytest.mark.parametrize(
    "changes",
    [{"pid": 10**21}, {"pid": "x"}, {"pid": 0}, {"start": None}, {"boot": 5}, {"token": []}, {"more": 1}],
    ids=str,
)
def test_an_owner_that_is_none_is_waited_for(changes: dict[str, Any], work: Path) -> None:
    work.parent.mkdir()
    owner_file(work, **changes)
    waits: list[str] = []
    take(work, waits.append).give_up()
    assert "has not said who it is" in waits[0]


@pytest.mark.parametrize("text", [b"", b"\0" * 100, b"0\n" + b"[" * 200_000, b"0\n5\n", b"x" * 10**6], ids=repr)
def test_an_owner_file_of_anything_is_waited_for(text: bytes, work: Path) -> None:
    work.mkdir(parents=True)
    (work / "owner.999999999").write_bytes(text)
    (work / "owner.of-folder").mkdir()
    owner = take(work)
    owner.confirm()
    assert names(work) == ["lock", "owner.1000000000", "owner.of-folder"]
    owner.give_up()


def test_a_disk_without_room_for_an_owner_file_leaves_none(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(ownership, "write_all", refuse)
        with pytest.raises(OSError, match="No space left") as caught:
            take(work)
    assert str(caught.value.filename).startswith(str(work))
    assert names(work) == ["lock"]
    take(work).give_up()


def test_a_child_does_not_keep_the_lock(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "fcntl", fcntl)
    owner = take(work)
    (work / "journal").write_text("")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read, 1)
        os._exit(0)
    owner.give_up()
    take(work).give_up()
    os.write(write, b"x")
    os.waitpid(pid, 0)


def test_an_owner_elsewhere_that_beats_is_alive(work: Path) -> None:
    with another(work) as process:
        path = work / "owner.1"
        text = path.read_text().replace('"boot": "', '"boot": "another ')
        path.write_text(text)
        with pytest.raises(DestinationError, match=f"process {process.pid}"):
            take(work)
        assert path.read_bytes()[:20] != b"0" * 20


def test_one_of_many_succeeds_a_dead_owner(work: Path) -> None:
    work.parent.mkdir()
    for _ in range(20):
        owner_file(work, 7, pid=2**30)

        def attempt(_: int) -> Ownership | None:
            try:
                return take(work)
            except DestinationError:
                return None

        with ThreadPoolExecutor(4) as pool:
            won = [owner for owner in pool.map(attempt, range(4)) if owner is not None]
        assert len(won) == 1
        won[0].confirm()
        won[0].give_up()
        assert not work.exists()


def test_who_was_taken_for_dead_learns_it_and_touches_nothing(work: Path) -> None:
    owner = take(work)
    owner_file(work, 2, host="there")
    assert owner.is_lost()
    with pytest.raises(DestinationError, match="taken for dead, and another one has taken over there"):
        owner.confirm()
    owner.give_up()
    assert names(work) == ["lock", "owner.1", "owner.2"]


def test_who_finds_the_folder_gone_has_lost_it(work: Path) -> None:
    owner = take(work)
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    assert owner.is_lost()
    owner.give_up()


def test_a_heartbeat_does_not_make_a_file_anew(work: Path) -> None:
    owner = take(work)
    (work / "owner.1").unlink()
    time.sleep(4 * BEAT)
    assert names(work) == ["lock"]
    owner.give_up()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS])
def test_where_there_are_no_hard_links_one_still_owns(number: int, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    owner = take(work)
    assert names(work) == ["lock", "owner.1"]
    with pytest.raises(DestinationError):
        take(work)
    owner.give_up()
