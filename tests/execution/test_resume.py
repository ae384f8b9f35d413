"""A run that was killed anywhere and is started again gives byte for byte what an undisturbed run gives."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests import oracle
from tests.places import LABELLED, REAL, ROOT, Source
from tests.processes import IMPORT_ALL
from tests.small_disk import small_disk
from tests.spread import Sweep

pytestmark = pytest.mark.slow

BLOOM = REAL[1].folder
TRACKER, RECEIPT = "latest_checkpointed_iteration.txt", "streamconv.json"
SOURCES = [REAL[1], REAL[3], REAL[4], LABELLED[4], LABELLED[5]]
TARGET = ("--tp", "1", "--pp", "2")
# Each tile is noted at once, so that where a run is killed decides what has been done. A run can be told to kill itself
# before its Nth step (a system call that changes something) or in the middle of it, or before the first of a name.
DRIVER = """
import contextlib, json, os, signal, sys
from streamconv.execution import run as conversion, publication, stream as streaming
from streamconv.cli.main import main
from streamconv.execution import assignment
from streamconv.io import durable as folders

assignment._FIRST_COMMIT_SECONDS = assignment._COMMIT_SECONDS = 3600.0
note, write = assignment.Assignment.note, os.write
steps, stop, how, log = 0, None, "", 0

def step(name, call, *arguments, **options):
    global steps
    steps += 1
    if stop in (steps, name):
        if how == "torn" and name in ("write", "pwrite"):
            with contextlib.suppress(OSError):  # half a direct write is none
                call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], *arguments[2:])
        write(log, f"killed before {name}".encode())
        os.kill(os.getpid(), signal.SIGKILL if how in ("", "torn") else getattr(signal, how))
    return call(*arguments, **options)

def watched(name, call):
    return lambda *arguments, **options: step(name, call, *arguments, **options)

def note_and_commit(self, done, tile):
    note(self, done, tile)
    self.commit()

def child(words):
    os.dup2(log, 1), os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assignment.Assignment.note = note_and_commit
    for name in ("write", "pwrite", "fsync", "fdatasync", "ftruncate", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, watched(name, getattr(os, name)))
    publication.exchange = watched("exchange", folders.exchange)
    code = main(words)
    sys.stdout.flush(), sys.stderr.flush()
    write(log, f"steps {steps}".encode())
    os._exit(code)

for line in sys.stdin:
    words, stop, how, path = json.loads(line)
    log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    pid = os.fork()
    if pid == 0:
        child(words)
    os.close(log)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    code: int
    text: str

    @property
    def steps(self) -> int:
        return int(self.text.rsplit("steps ", 1)[1])

    @property
    def resumed(self) -> int:
        found = re.search(r'"resumed_nbytes": (\d+)', self.text)
        assert found, self.text
        return int(found[1])


class Runs:
    """Runs the command line, each time in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def __call__(self, *words: object, stop: int | str | None = None, how: str = "") -> Done:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        every = ["convert", *map(str, words), "--json", "--max-ram", "1G"]
        print(json.dumps([every, stop, how, str(self.log)]), file=self.process.stdin, flush=True)
        return Done(int(self.process.stdout.readline()), self.log.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    log = tmp_path_factory.mktemp("log") / "log"
    words = [sys.executable, "-c", IMPORT_ALL + DRIVER]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield Runs(process, log)
    process.communicate(timeout=60)


def hashes(root: Path) -> dict[str, str]:
    """Every file below a folder; what is being worked on is not looked at."""
    files = (path for path in root.rglob("*") if path.is_file())
    found = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {name: digest for name, digest in found.items() if not name.startswith(".streamconv")}


def assert_whole(root: Path, expected: dict[str, str]) -> None:
    assert hashes(root) == expected
    assert not (root / ".streamconv").exists()


@dataclass(frozen=True)
class Undisturbed:
    """A conversion that nothing happened to: what it wrote, and how many steps it took."""

    hashes: dict[str, str]
    steps: int


def undisturbed(run: Runs, out: Path, source: Path, *words: object) -> Undisturbed:
    done = run(source, out, *words, "--jobs", 1)
    assert done.code == 0, done.text
    return Undisturbed(hashes(out), done.steps)


@pytest.fixture(scope="module")
def bloom(run: Runs, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(run, tmp_path_factory.mktemp("bloom") / "out", BLOOM, *TARGET)


HOW = (
    (),
    ("--jobs", 1, "--io", "pread"),
    ("--jobs", 2, "--io", "direct", "--block-size", "64K"),
    ("--jobs", 4, "--block-size", "128K"),
    ("--max-ram", "160M"),
)


def test_the_noted_tiles_are_not_done_again(run: Runs, bloom: Undisturbed, fast: Path) -> None:
    done = [run(BLOOM, fast / f"{stop}", *TARGET, "--jobs", 1, stop=stop) for stop in (60, 160, 300)]
    assert [each.code for each in done] == [-signal.SIGKILL] * 3, "a run ended before it could be killed"
    resumed = [run(BLOOM, fast / f"{stop}", *TARGET) for stop in (60, 160, 300)]
    assert 0 < resumed[0].resumed < resumed[1].resumed < resumed[2].resumed
    for stop in (60, 160, 300):
        assert_whole(fast / f"{stop}", bloom.hashes)


@pytest.mark.parametrize(("first", "second"), [("serial", "threads"), ("threads", "serial")])
def test_a_killed_run_of_one_engine_is_ended_by_another(
    first: str, second: str, run: Runs, bloom: Undisturbed, fast: Path
) -> None:
    for stop in (60, 160, 300):
        killed = run(BLOOM, fast / f"{stop}", *TARGET, "--engine", first, "--jobs", 1, stop=stop)
        assert killed.code == -signal.SIGKILL
        again = run(BLOOM, fast / f"{stop}", *TARGET, "--engine", second)
        assert again.resumed > 0
        assert f'"engine": "{second}"' in again.text
        assert_whole(fast / f"{stop}", bloom.hashes)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_and_started_again_gives_the_same_bytes(
    seed: int, source: Source, run: Runs, fast: Path, sweep: Sweep
) -> None:
    folder, rng = source.folder, random.Random(f"{source.name}{seed}")
    whole = undisturbed(run, fast / "whole", folder, *TARGET)
    for number, stop in enumerate(sweep.of(sorted(rng.sample(range(1, whole.steps + 1), 6)), 3)):
        out = fast / f"{number}"
        killed = run(folder, out, *TARGET, "--jobs", 1, stop=stop, how=rng.choice(["", "torn"]))
        assert killed.code == -signal.SIGKILL
        assert not (out / TRACKER).exists() or hashes(out) == whole.hashes
        again = run(folder, out, *TARGET, *rng.choice(HOW))
        assert again.code == 0, again.text
        assert_whole(out, whole.hashes)


def test_killed_again_and_again_it_gets_to_its_end(run: Runs, bloom: Undisturbed, fast: Path) -> None:
    for seed in range(4):
        out, rng, done, resumed = fast / f"{seed}", random.Random(seed), None, []
        for _ in range(5):
            done = run(BLOOM, out, *TARGET, "--jobs", 1, stop=rng.randint(20, 110), how=rng.choice(["", "torn"]))
            resumed.append(done.code)
        assert set(resumed) <= {0, -signal.SIGKILL}
        done = run(BLOOM, out, *TARGET)
        assert done.code == 0, done.text
        assert_whole(out, bloom.hashes)


def test_killed_at_each_of_the_first_steps_it_gets_to_its_end(
    run: Runs, bloom: Undisturbed, fast: Path, sweep: Sweep
) -> None:
    for stop in sweep.of(range(1, 24), 4):
        out = fast / f"{stop}"
        assert run(BLOOM, out, *TARGET, "--jobs", 1, stop=stop, how="torn").code == -signal.SIGKILL
        again = run(BLOOM, out, *TARGET, "--jobs", 2)
        assert again.code == 0, again.text
        assert_whole(out, bloom.hashes)


# -- the end of a run --------------------------------------------------------------------------------------------------


def old_checkpoint(run: Runs, out: Path) -> dict[str, str]:
    """Another checkpoint under the same names."""
    assert run(BLOOM, out, "--tp", 2, "--pp", 1).code == 0
    return hashes(out)


def test_killed_at_each_of_the_last_steps_the_new_replaces_the_old_whole_or_not_at_all(
    run: Runs, bloom: Undisturbed, fast: Path, sweep: Sweep
) -> None:
    """The steps from the first frame on; behind the last of them a run is not killed any more."""
    old = old_checkpoint(run, fast / "old")
    out = Path(shutil.copytree(fast / "old", fast / "whole"))
    last = undisturbed(run, out, BLOOM, *TARGET, "--overwrite").steps
    assert last > bloom.steps
    states: list[str] = []
    for stop in sweep.of(range(bloom.steps - 50, last + 2), 8):
        out = Path(shutil.copytree(fast / "old", fast / f"{stop}"))
        killed = run(BLOOM, out, *TARGET, "--jobs", 1, "--overwrite", stop=stop)
        assert killed.code == (0 if stop > last else -signal.SIGKILL)
        if stop > last:
            break
        plain = run(BLOOM, out, *TARGET)
        states.append("new" if hashes(out) == bloom.hashes else "old")
        assert plain.code == (0 if states[-1] == "new" else 8), plain.text
        assert ('"was_done": true' if states[-1] == "new" else "holds a checkpoint") in plain.text
        assert hashes(out) == (bloom.hashes if states[-1] == "new" else old)
        again = run(BLOOM, out, *TARGET, "--overwrite")
        assert again.code == 0, again.text
        assert_whole(out, bloom.hashes)
        shutil.rmtree(out)
    assert states == sorted(states, reverse=True)
    assert len(set(states)) == 2


def test_an_overwrite_killed_between_exchange_and_tracker_goes_on_and_the_result_is_whole(
    run: Runs, bloom: Undisturbed, fast: Path
) -> None:
    old = old_checkpoint(run, fast / "out")
    killed = run(BLOOM, fast / "out", *TARGET, "--overwrite", stop="replace")
    assert killed.text == "killed before replace"
    assert hashes(fast / "out") != old
    assert (fast / "out" / ".streamconv" / "journal").exists()
    again = run(BLOOM, fast / "out", *TARGET, "--overwrite")
    assert again.code == 0, again.text
    assert again.resumed > 0
    assert_whole(fast / "out", bloom.hashes)


# -- what is not the same run ------------------------------------------------------------------------------------------


@pytest.fixture
def left(run: Runs, fast: Path) -> Path:
    """What a killed run left."""
    assert run(BLOOM, fast / "out", *TARGET, "--jobs", 1, stop=150).code == -signal.SIGKILL
    return fast / "out"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tp", 2, "--pp", 2), "another layout"),
        ((*TARGET, "--dtype", "bf16"), "another dtype"),
        ((*TARGET, "--no-args"), "other options"),
    ],
)
def test_another_run_is_refused_and_what_is_left_kept_until_it_restarts(
    words: tuple[object, ...], says: str, run: Runs, left: Path, bloom: Undisturbed, fast: Path
) -> None:
    journal = (left / ".streamconv/journal").read_bytes()
    for _ in range(2):
        refused = run(BLOOM, left, *words)
        assert refused.code == 8
        assert says in refused.text
        assert "--restart" in refused.text
        assert (left / ".streamconv/journal").read_bytes() == journal
    kept = Path(shutil.copytree(left, fast / "kept"))
    assert run(BLOOM, kept, *TARGET).resumed > 0
    assert_whole(kept, bloom.hashes)
    whole = undisturbed(run, fast / "whole", BLOOM, *words)
    restarted = run(BLOOM, left, *words, "--restart")
    assert (restarted.code, restarted.resumed) == (0, 0)
    assert_whole(left, whole.hashes)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("stop", [30, 120, 250])
def test_an_interrupted_run_says_that_it_goes_on_and_does(
    stop: int, name: str, code: int, run: Runs, bloom: Undisturbed, fast: Path
) -> None:
    interrupted = run(BLOOM, fast / "out", *TARGET, "--jobs", 1, stop=stop, how=name)
    assert interrupted.code == code, interrupted.text
    assert "the same command goes on where this ended" in interrupted.text
    assert (fast / "out/.streamconv/journal").exists()
    assert hashes(fast / "out") == {}
    again = run(BLOOM, fast / "out", *TARGET)
    assert again.resumed > 0
    assert_whole(fast / "out", bloom.hashes)


@pytest.fixture
def copy(fast: Path) -> tuple[Path, Path]:
    """A copy of the source, and one of its files."""
    root = Path(shutil.copytree(BLOOM, fast / "copy"))
    return root, root / "global_step3" / "layer_06-model_00-model_states.pt"


def flip(path: Path) -> None:
    """Change a byte of a tensor, and let nobody see it by the time of change."""
    data, before = bytearray(path.read_bytes()), path.stat()
    data[20_000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("stop", [None, 40, 120])
def test_a_damaged_source_leaves_nothing_also_when_it_goes_on(
    stop: int | None, run: Runs, copy: tuple[Path, Path], fast: Path
) -> None:
    root, path = copy
    if stop is not None:
        assert run(root, fast / "out", *TARGET, "--jobs", 1, stop=stop).code == -signal.SIGKILL
    flip(path)
    damaged = run(root, fast / "out", *TARGET)
    assert damaged.code == 6, damaged.text
    assert path.name in damaged.text
    assert not (fast / "out/.streamconv").exists()
    assert hashes(fast / "out") == {}
    assert stop is not None or not (fast / "out").exists()


def test_a_source_that_changed_since_is_refused_until_it_restarts(
    run: Runs, copy: tuple[Path, Path], bloom: Undisturbed, fast: Path
) -> None:
    root, path = copy
    assert run(root, fast / "out", *TARGET, "--jobs", 1, stop=150).code == -signal.SIGKILL
    os.utime(path)
    refused = run(root, fast / "out", *TARGET)
    assert refused.code == 8
    assert path.name in refused.text
    assert run(root, fast / "out", *TARGET, "--restart").code == 0
    assert {**hashes(fast / "out"), RECEIPT: ""} == {**bloom.hashes, RECEIPT: ""}


# -- disks -------------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(run: Runs, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128 << 10) as folder:
        for words in ((), ("--restart",)):
            refused = run(BLOOM, folder / "out", *TARGET, *words)
            assert refused.code == 4, refused.text
            assert "the disk has 1" in refused.text
            assert list(folder.iterdir()) == []


def test_a_disk_that_becomes_full_keeps_what_was_done_and_the_run_goes_on_when_there_is_room(
    run: Runs, bloom: Undisturbed, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2 << 20) as folder:
        assert run(BLOOM, folder / "out", *TARGET, "--jobs", 1, stop=100).code == -signal.SIGKILL
        free = shutil.disk_usage(folder).free
        (folder / "filler").write_bytes(bytes(free))
        refused = run(BLOOM, folder / "out", *TARGET)
        assert refused.code == 4, refused.text
        assert (folder / "out/.streamconv/journal").exists()
        (folder / "filler").unlink()
        again = run(BLOOM, folder / "out", *TARGET)
        assert again.resumed > 0
        assert_whole(folder / "out", bloom.hashes)


# -- kills from outside, and direct transfers --------------------------------------------------------------------------

COMMITS_ALL_THE_TIME = """
import sys
from streamconv.cli.main import main
from streamconv.core import pool
from streamconv.execution import assignment
pool._TICK_SECONDS = assignment._FIRST_COMMIT_SECONDS = assignment._COMMIT_SECONDS = 0.0005
sys.exit(main())
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BLOOM fixture's layers eight times as wide in each direction: long enough to go directly to the disk."""
    folder = tmp_path_factory.mktemp("wide") / "global_step3"
    folder.mkdir()
    for path in (BLOOM / "global_step3").glob("layer_*"):
        number, rank = int(path.name[6:8]), int(path.name[15:17])
        state = {}
        for place, (name, tensor) in enumerate(torch.load(path).items()):
            shape = tuple(8 * size for size in tensor.shape)
            split = any(name.endswith(end) for end in (*oracle.SPLIT_ON_ROWS, *oracle.ROW_PARALLEL))
            seed = 1000 * number + 10 * place + (rank if split else 0)
            state[name] = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        torch.save(state, folder / path.name)
    return folder


WIDE = ("--num-heads", 4, "--pp-layers", "1,3", "--iteration", 3, "--qkv-layout", "interleaved", "--tp", 4)


@pytest.mark.parametrize("seed", range(3))
def test_long_parts_written_directly_are_right_after_a_kill(seed: int, run: Runs, wide: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    whole = undisturbed(run, tmp_path / "whole", wide, *WIDE, "--io", "pread")
    sizes = ["192K", "256K", "1M", "3M"]
    for number in range(3):
        out = tmp_path / f"{number}"
        for _ in range(3):
            words = ("--block-size", rng.choice(sizes), "--io", rng.choice(["direct", "direct", "pread"]))
            done = run(wide, out, *WIDE, "--jobs", 1, *words, stop=rng.randint(50, 400), how=rng.choice(["", "torn"]))
            assert done.code == -signal.SIGKILL or done.code in (0, 8), done.text
        again = run(wide, out, *WIDE, "--jobs", 2, "--block-size", rng.choice(sizes))
        assert again.code == 0 or "holds a checkpoint" in again.text, again.text
        assert_whole(out, whole.hashes)
        shutil.rmtree(out)


def lines_in(journal: Path) -> int:
    """How many lines a journal has; the run that writes it removes it at any moment."""
    try:
        return journal.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("lines", [1, 3, 8])
def test_killed_from_outside_at_any_moment_and_started_again(lines: int, run: Runs, wide: Path, tmp_path: Path) -> None:
    whole = undisturbed(run, tmp_path / "whole", wide, *WIDE)
    words = map(str, (wide, tmp_path / "out", *WIDE, "--block-size", "64K"))
    command = [sys.executable, "-c", COMMITS_ALL_THE_TIME, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "out/.streamconv/journal"
    while process.poll() is None and lines_in(journal) < lines:
        pass
    process.kill()
    process.wait()
    again = run(wide, tmp_path / "out", *WIDE)
    assert again.code == 0 or "holds a checkpoint" in again.text, again.text
    assert_whole(tmp_path / "out", whole.hashes)
