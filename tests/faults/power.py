"""What is wrong after a power cut at any moment of a run: looked at in memory, and by running the command again."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cases import WORK, Case, Tree, differences, shown
from tests.faults.disk_model import Crashed, Disk, Keep

__all__ = ["Cut", "cuts", "findings_in_memory", "findings_of_reruns"]

DRAWS = 3


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut after the ``step``-th call, of what is not synced a choice is kept."""

    step: int
    choice: str
    after: str
    disk: Crashed

    def __str__(self) -> str:
        return f"power cut after call {self.step}, {self.after}, {self.choice} kept"

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for path, data in sorted(self.disk.content.items()):
            digest.update(repr((path, data)).encode())
        return digest.hexdigest()

    def files(self, case: Case) -> Tree:
        """The files in the destination."""
        prefix = f"{case.destination.name}/"
        return {path.removeprefix(prefix): data for path, data in self.disk.files.items() if path.startswith(prefix)}


def cuts(case: Case, steps: Sequence[int] | None = None) -> Iterator[Cut]:
    """What the disk could hold after each call of the run, or after those of ``steps``."""
    case.reset()
    disk, chosen = Disk(case.destination.parent), set(range(len(case.calls) + 1) if steps is None else steps)
    # The calls know the inodes of the run that made them: the log is of a run in this very folder.
    calls = case.calls_now()
    for step in range(len(calls) + 1):
        if step > 0:
            disk.apply(calls[step - 1])
        if step in chosen:
            call = calls[step - 1]
            after = f"{call.name} {call.path} {call.other}".strip() if step else "nothing"
            yield from (Cut(step, name, after, disk.crashed(keep)) for name, keep in _choices(disk, step))


def _choices(disk: Disk, seed: int) -> Iterator[tuple[str, Keep]]:
    names, sizes, every = (frozenset(each) for each in (disk.unsynced_names, disk.unsynced_sizes, disk.unsynced))
    rng = random.Random(seed)
    yield "nothing", frozenset[int]().__contains__
    yield "everything", every.__contains__
    yield "names", names.__contains__
    yield "names and sizes", (names | sizes).__contains__
    yield "data", (every - names).__contains__
    for _ in range(DRAWS if every else 0):
        some = frozenset(step for step in sorted(every) if rng.random() < 0.5)
        until = rng.choice(sorted(every))
        yield "a part", some.__contains__
        yield "a part of the names", (some & names).__contains__
        yield f"what was done until call {until}", frozenset(step for step in every if step <= until).__contains__
        yield f"the names until call {until}", frozenset(step for step in names if step <= until).__contains__


def findings_in_memory(case: Case, some: Iterable[Cut]) -> Iterator[str]:
    """A record beside data that is not whole; and after the last call, a result that is not durable."""
    for cut in some:
        seen = shown(cut.files(case))
        yield from (f"{cut}: {words}" for words in case.mixed(seen))
        if cut.step == len(case.calls) and seen != case.new:
            yield f"{cut}: all was done, and {differences(seen, case.new)}"


def findings_of_reruns(case: Case, some: Iterable[Cut]) -> Iterator[str]:
    """Put what the disk held back, and run the command again."""
    for cut in some:
        case.reset()
        _put_back(cut.disk, case.destination.parent)
        _name_inodes_anew(cut.disk, case.destination)
        yield from (f"{cut}: {words}" for words in case.again())


def _put_back(disk: Crashed, root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    for path, data in disk.content.items():
        if data is None:
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(data)


def _name_inodes_anew(disk: Crashed, destination: Path) -> None:
    """What was to be published is known by inodes: give it those that the same entries have now."""
    intent = destination / WORK / "publishing.json"
    if not intent.is_file():
        return
    try:
        noted = json.loads(intent.read_bytes())
    except ValueError:
        return
    root = destination.parent
    now = {inode: (root / path).stat().st_ino for inode, path in disk.inodes.items() if path}
    intent.write_text(json.dumps(_renumbered(noted, now)))


def _renumbered(value: object, now: dict[int, int]) -> object:
    if isinstance(value, dict):
        return {key: _renumbered(each, now) for key, each in value.items()}
    if isinstance(value, list):
        return [_renumbered(each, now) for each in value]
    return now.get(value, value) if type(value) is int else value
