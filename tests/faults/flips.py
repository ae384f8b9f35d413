"""What is wrong after something happened to what an interrupted run left: its journal, or its staged files."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import damage
from tests.faults.cases import WORK, Case, differences
from tests.faults.points import Point, run

__all__ = ["HOW", "Left", "changed", "interrupted"]

REFUSALS = (5, 6, 8)
NO_JOURNAL = b""


@dataclass(frozen=True, slots=True)
class Left:
    """A folder with what a run left that was killed when nearly all tiles were journaled.

    ``early`` has what it left when a few were, ``others`` the journal of a run to another dtype.
    """

    folder: Path
    early: Path
    others: bytes

    @property
    def journal(self) -> bytes:
        return (self.folder / WORK / "journal").read_bytes()


def interrupted(case: Case, folder: Path) -> Left:
    """Runs that were killed when some tiles had been journaled; each time the folder is kept."""
    journaled = [n for n, call in enumerate(case.calls, 1) if call.path.endswith("/journal") and call.is_sync]
    points = [Point(n + 1, "kill", case.calls[n]) for n in (journaled[-1], journaled[3])]
    for name, point in zip(("late", "early"), points, strict=True):
        case.reset()
        case.run(point)
        shutil.copytree(case.destination, folder / name)
    case.reset()
    run((*case.target.words, *case.target.older), case.destination, points[0].variables)
    journal = case.destination / WORK / "journal"
    return Left(folder / "late", folder / "early", journal.read_bytes() if journal.exists() else NO_JOURNAL)


def _staged(folder: Path, rng: random.Random) -> Path:
    files = sorted(path for path in (folder / WORK / "new").rglob("*") if path.is_file() and path.stat().st_size)
    return rng.choice(files)


def _flip(path: Path, rng: random.Random) -> None:
    damage.flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))


def _cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip_journal(left: Left, folder: Path, rng: random.Random) -> None:
    _flip(folder / WORK / "journal", rng)


def cut_journal(left: Left, folder: Path, rng: random.Random) -> None:
    _cut(folder / WORK / "journal", rng)


def swap_journal(left: Left, folder: Path, rng: random.Random) -> None:
    (folder / WORK / "journal").write_bytes(left.others)


def swap_files(left: Left, folder: Path, rng: random.Random) -> None:
    """The journal says more than is there."""
    shutil.rmtree(folder / WORK / "new")
    shutil.copytree(left.early / WORK / "new", folder / WORK / "new")


def swap_some_files(left: Left, folder: Path, rng: random.Random) -> None:
    path = _staged(folder, rng)
    path.write_bytes((left.early / path.relative_to(folder)).read_bytes())


def flip_staged(left: Left, folder: Path, rng: random.Random) -> None:
    _flip(_staged(folder, rng), rng)


def cut_staged(left: Left, folder: Path, rng: random.Random) -> None:
    _cut(_staged(folder, rng), rng)


def empty_staged(left: Left, folder: Path, rng: random.Random) -> None:
    """Of its size, but all zeros: as of a disk that kept the size alone."""
    path = _staged(folder, rng)
    path.write_bytes(bytes(path.stat().st_size))


def delete_staged(left: Left, folder: Path, rng: random.Random) -> None:
    _staged(folder, rng).unlink()


# How many of a thousand: what is likely, and what has many places, more often.
HOW = {
    flip_journal: 60,
    cut_journal: 20,
    swap_journal: 1,
    swap_files: 1,
    swap_some_files: 4,
    flip_staged: 60,
    cut_staged: 8,
    empty_staged: 8,
    delete_staged: 5,
}
"""What can happen, and how often to try it with each target: a thousand times with six."""


def changed(case: Case, left: Left, trials: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Let what was left change in each of the ways, and run the command again."""
    ways = {each.__name__: each for each in HOW}
    for name, number in trials:
        case.reset()
        shutil.copytree(left.folder, case.destination, dirs_exist_ok=True)
        ways[name](left, case.destination, random.Random(f"{case.target.name} {name} {number}"))
        done = case.run()
        if done.code == 0:
            words = [differences(case.seen(), case.new)] if case.seen() != case.new else []
        else:
            words = [*case.mixed(case.seen())]
            if done.code not in REFUSALS or not any(line.startswith("error: ") for line in done.text.splitlines()):
                words.append(done.last_words)
        yield from (f"{name} {number}: it ends with {done.code}, {each}" for each in words)
