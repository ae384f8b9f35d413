"""A flat folder as a destination: its files are replaced and older ones retired, all of them or none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamconv.core.errors import DamagedError, DestinationError, SourceError, StorageError, StreamconvError
from streamconv.execution import publication
from streamconv.execution.destination import check_destination
from streamconv.execution.staging import staging
from streamconv.io import whole_file
from tests.places import ROOT
from tests.running import clear_leftovers
from tests.spread import Sweep

MIB = 1 << 20
RECORD = "config.json"
ENTRIES = ["extra", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"]
TEXTS = {"generation_config.json": "new generation", RECORD: "new config"}
RETIRED = ["model.safetensors", "pytorch_model-00001-of-00002.bin", "model-00003-of-00003.safetensors"]
OWNED = ("*.safetensors", "pytorch_model*", RECORD)


# Runs each line in a process of its own, which stops at its Nth step: what changes a name, opens a file to write, or
# makes something durable. It kills itself before the step, or that step (or that one and all after it) is refused.
DRIVER = """
import errno, json, os, signal, sys
from pathlib import Path
from streamconv.execution import publication
from streamconv.execution.staging import staging
from streamconv.core.errors import StorageError
from streamconv.io import output as output_io

seen, stop, how = 0, 0, ""
NAMES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
fsync = os.fsync

def step(name):
    global seen
    seen += 1
    if seen == stop and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if seen == stop and how == "once" or seen >= stop and how == "onwards":
        raise OSError(errno.EIO, f"refused {name}")

def audit(event, arguments):
    if event in NAMES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        step(event)
    if event == "ctypes.dlsym" and arguments[1] == "renameat2":
        step("exchange")

def durable(fd):
    step("fsync")
    fsync(fd)

def watch():
    os.fsync = durable
    sys.addaudithook(audit)

def child(what, folder, names, retire, texts, has_journal):
    if what == "clear":
        watch()
        with staging(folder):
            return
    with staging(folder) as stage:
        if has_journal:
            stage.journal.write_text("{}")
        for name in names:
            stage.path(f"{name}/file" if name == "extra" else name).write_text(f"new {name}")
        watch()
        stage.publish(texts, retire)

for line in sys.stdin:
    stop, how, can_exchange, what, folder, *rest = json.loads(line)
    end, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        if not can_exchange:
            publication.exchange = lambda first, second: False
        code = 1
        try:
            child(what, Path(folder), *rest)
            code = 0
        except StorageError:
            code = 5
        finally:
            os.write(begin, b"%d" % seen)
            os._exit(code)
    os.close(begin)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code, int(os.read(end, 9) or -1), flush=True)
    os.close(end)
"""


class Runs:
    """Publishes a new result into a folder, or clears up there, in a process that is stopped at a step."""

    def __init__(self, process: subprocess.Popen[str], *, can_exchange: bool, has_journal: bool) -> None:
        self.process, self.can_exchange, self.has_journal = process, can_exchange, has_journal

    def _run(self, *words: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        code, self.steps = map(int, self.process.stdout.readline().split())
        return code

    def publish(self, folder: Path, stop: int = 0, how: str = "") -> int:
        names = [name for name in ENTRIES if name not in TEXTS]
        words = (str(folder), names, [*RETIRED, "not there"], TEXTS, self.has_journal)
        return self._run(stop, how, self.can_exchange, "publish", *words)

    def clear(self, folder: Path, stop: int = 0, how: str = "") -> int:
        return self._run(stop, how, self.can_exchange, "clear", str(folder), [], [], {}, False)


@pytest.fixture(scope="module")
def driver() -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", DRIVER]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.communicate(timeout=60)


@pytest.fixture(params=["exchange", "renames"])
def can_exchange(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "exchange")


@pytest.fixture(params=[False, True], ids=["anew", "journal"])
def run(request: pytest.FixtureRequest, driver: subprocess.Popen[str], can_exchange: bool) -> Runs:
    return Runs(driver, can_exchange=can_exchange, has_journal=request.param)


def tree(root: Path) -> dict[str, str]:
    """Every file below a folder with its text and every link with where it points; the work folder is not looked at."""
    found = {
        str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_symlink() or not is_dir(path)
    }
    return {
        name: f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        for name, path in found.items()
        if not name.startswith(".streamconv/")
    }


def is_dir(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def old_folder(root: Path) -> Path:
    """An older checkpoint of other shards and a folder; two of its files are links, and one of them points nowhere."""
    root.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00003-of-00003.safetensors", "model.safetensors", "notes"):
        (root / name).write_text(f"old {name}")
    (root / "extra").mkdir()
    (root / "extra" / "older").write_text("old extra")
    for name, text in TEXTS.items():
        (root / name).write_text(text.replace("new", "old"))
    (root / "pytorch_model-00001-of-00002.bin").symlink_to("notes")
    (root / "tokenizer.json").symlink_to("nowhere")
    return root


NEW = {name if name != "extra" else "extra/file": f"new {name}" for name in ENTRIES} | TEXTS


@pytest.fixture
def old(fast: Path) -> Path:
    return old_folder(fast / "old")


def copy_of(folder: Path, name: object) -> Path:
    return Path(shutil.copytree(folder, folder.parent / f"{name}", symlinks=True))


def state(folder: Path, old: Path) -> str:
    """Which of the two checkpoints is there; whole, or it is an error."""
    found = tree(folder)
    expected = {"old": tree(old), "new": NEW | {"notes": "old notes"}}
    names = [name for name, files in expected.items() if files == found]
    assert names, found
    return names[0]


def assert_cleared(folder: Path, run: Runs, which: str) -> None:
    """Nothing is left over, but for a run with a journal its work: all that it had staged."""
    if not run.has_journal or which == "new":
        assert not (folder / ".streamconv").exists()
        return
    work = folder / ".streamconv"
    staged = {name: text for name, text in tree(work / "new").items() if name not in TEXTS}
    assert staged == {name: text for name, text in NEW.items() if name not in TEXTS}
    assert not (work / "old").exists()
    assert not (work / "publishing.json").exists()


# -- all or nothing ----------------------------------------------------------------------------------------------------


def test_the_new_replaces_the_old_and_retires_the_rest(run: Runs, old: Path) -> None:
    out = copy_of(old, "out")
    assert run.publish(out) == 0
    assert state(out, old) == "new"
    assert not (out / ".streamconv").exists()


def steps_of(run: Runs, old: Path) -> int:
    """How many steps a run takes that nothing stops: behind the last of them nothing is left to stop."""
    assert run.publish(copy_of(old, "whole")) == 0
    return run.steps


@pytest.mark.slow
def test_killed_at_each_step_the_old_or_the_new_is_whole(run: Runs, old: Path, sweep: Sweep) -> None:
    states: dict[int, str] = {}
    last = steps_of(run, old)
    for stop in sweep.of(range(1, last + 1), 4):
        out = copy_of(old, stop)
        assert run.publish(out, stop, "kill") == -signal.SIGKILL
        assert run.clear(out) == 0
        states[stop] = state(out, old)
        assert_cleared(out, run, states[stop])
        assert run.publish(out) == 0
        assert state(out, old) == "new"
        shutil.rmtree(out)
    assert list(states.values()) == sorted(states.values(), reverse=True)
    assert max(stop for stop, which in states.items() if which == "old") > 10
    assert min(stop for stop, which in states.items() if which == "new") <= last - 5
    assert run.publish(copy_of(old, "out"), last + 1, "kill") == 0


@pytest.mark.slow
def test_into_an_empty_folder_killed_at_each_step_it_stays_empty_or_is_whole(
    run: Runs, fast: Path, sweep: Sweep
) -> None:
    (fast / "old").mkdir()
    states = set()
    last = steps_of(run, fast / "old")
    for stop in sweep.of(range(1, last + 2), 4):
        out = copy_of(fast / "old", stop)
        assert run.publish(out, stop, "kill") == (-signal.SIGKILL if stop <= last else 0)
        assert run.clear(out) == 0
        assert tree(out) in ({}, NEW)
        states.add(bool(tree(out)))
    assert states == {False, True}


@pytest.mark.slow
def test_killed_again_while_it_is_undone_the_old_or_the_new_is_whole(run: Runs, old: Path, sweep: Sweep) -> None:
    for stop in sweep.of(range(6, steps_of(run, old) + 1, 4), 3):
        # A copy has other inodes than those that were noted: each is published and killed anew.
        states = set()
        for again in range(1, 100, 3):
            out = copy_of(old, f"{stop}-{again}")
            assert run.publish(out, stop, "kill") == -signal.SIGKILL
            code = run.clear(out, again, "kill")
            assert run.clear(out) == 0
            states.add(state(out, old))
            assert_cleared(out, run, state(out, old))
            shutil.rmtree(out)
            if code == 0:
                break
        assert len(states) == 1


@pytest.mark.slow
def test_refused_at_each_step_the_old_or_the_new_is_whole(run: Runs, old: Path, sweep: Sweep) -> None:
    """A refusal that does no harm (a folder is there already, what was replaced is not deleted at once) is no error."""
    states: dict[int, tuple[int, str]] = {}
    last = steps_of(run, old)
    for stop in sweep.of(range(1, last + 2), 4):
        out = copy_of(old, stop)
        code = run.publish(out, stop, "once")
        which = state(out, old)
        states[stop] = (code, which)
        assert states[stop] in ((5, "old"), (5, "new"), (0, "new"))
        assert run.clear(out) == 0
        assert state(out, old) == which
        assert_cleared(out, run, which)
        shutil.rmtree(out)
    assert states[max(states)] == (0, "new")
    # More than 10 of all steps; of a sample the same share.
    assert list(states.values()).count((5, "old")) * (last + 1) > 10 * len(states)
    # There is one step after which it is known that the result is in place, and not that it stays.
    assert (5, "new") in states.values() or sweep.cases != "all"


@pytest.mark.slow
def test_a_disk_that_refuses_all_from_a_step_on_is_no_worse_than_a_kill(run: Runs, old: Path, sweep: Sweep) -> None:
    states = []
    last = steps_of(run, old)
    for stop in sweep.of(range(1, last + 2), 4):
        out = copy_of(old, stop)
        code = run.publish(out, stop, "onwards")
        assert code in ((0, 5) if stop <= last else (0,))
        assert run.clear(out) == 0
        states.append(state(out, old))
        assert_cleared(out, run, states[-1])
        shutil.rmtree(out)
        if code == 0:
            break
    assert states == sorted(states, reverse=True)
    assert set(states) == {"old", "new"}


def test_a_record_that_cannot_be_replaced_leaves_all_as_it_was(run: Runs, old: Path) -> None:
    (old / RECORD).unlink()
    (old / RECORD / "in the way").mkdir(parents=True)
    out = copy_of(old, "out")
    assert run.publish(out) == 5
    assert state(out, old) == "old"
    assert (out / RECORD / "in the way").is_dir()
    assert_cleared(out, run, "old")


def test_what_cannot_be_deleted_is_not_put_back(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where the folder of an open file stays."""
    out = copy_of(old, "out")
    monkeypatch.setattr(publication, "exchange", lambda first, second: False)
    with monkeypatch.context() as stays:
        stays.setattr(shutil, "rmtree", lambda *_, **__: None)
        with staging(out) as stage:
            stage.path("model-00001-of-00002.safetensors").write_text("new")
            stage.publish({RECORD: "new config"}, ["model.safetensors"])
        assert (out / ".streamconv").is_dir()
        clear_leftovers(out)
    assert not (out / "model.safetensors").exists()
    clear_leftovers(out)
    assert not (out / ".streamconv").exists()
    changed = {"model-00001-of-00002.safetensors": "new", RECORD: "new config"}
    assert tree(out) == {name: text for name, text in tree(old).items() if name != "model.safetensors"} | changed


def test_an_intent_that_cannot_be_read_is_not_taken_for_none(old: Path) -> None:
    """What is aside may have been retired by a result that is whole: it is neither put back nor deleted."""
    (old / ".streamconv" / "publishing.json").mkdir(parents=True)
    (old / ".streamconv" / "old").mkdir()
    (old / "model.safetensors").rename(old / ".streamconv" / "old" / "model.safetensors")
    with pytest.raises(StorageError, match="Is a directory"):
        clear_leftovers(old)
    assert (old / ".streamconv" / "old" / "model.safetensors").exists()
    assert not (old / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a"])
def test_only_what_is_directly_in_the_destination_can_be_retired(name: str, old: Path) -> None:
    before = tree(old)
    with staging(old) as stage, pytest.raises(ValueError, match="not names in the destination"):
        stage.publish({RECORD: ""}, [name])
    assert tree(old) == before


def test_what_is_replaced_is_not_retired(old: Path) -> None:
    with staging(old) as stage:
        stage.text("model.safetensors", "new")
        stage.publish({RECORD: "new config"}, ["model.safetensors", RECORD, "not there"])
    assert (old / "model.safetensors").read_text() == "new"
    assert (old / RECORD).read_text() == "new config"


# -- where a result may go ---------------------------------------------------------------------------------------------


def check(folder: Path, *entries: str, overwrite: bool = False) -> list[str]:
    source = folder.parent / "source" / "global_step3"
    source.mkdir(parents=True, exist_ok=True)
    return check_destination(source, folder, entries, overwrite=overwrite, owned=OWNED)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "adapter.safetensors", RECORD])
def test_a_file_of_a_checkpoint_is_replaced_only_when_that_is_said(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to("nowhere")
    with pytest.raises(DestinationError, match="holds a checkpoint") as caught:
        check(out)
    assert name in str(caught.value)
    assert check(out, overwrite=True) == [name]
    assert check(out, name, overwrite=True) == []


def test_files_and_links_are_retired_and_nothing_else(old: Path) -> None:
    (old / "folder.safetensors").mkdir()
    (old / "linked.safetensors").symlink_to("extra")
    os.mkfifo(old / "pytorch_model")
    entries = ["model-00001-of-00002.safetensors", RECORD]
    assert check(old, *entries, overwrite=True) == [
        "linked.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors",
        "pytorch_model-00001-of-00002.bin",
    ]
    (old.parent / "out" / "folder.safetensors").mkdir(parents=True)
    with pytest.raises(DestinationError, match="holds a checkpoint"):
        check(old.parent / "out")


def test_other_files_and_the_work_folder_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "out" / ".streamconv").mkdir(parents=True)
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    assert check(tmp_path / "out") == []
    assert check(tmp_path / "not there") == []
    source = tmp_path / "source" / "global_step3"
    found = check_destination(source, tmp_path / "out", [], overwrite=True, owned=["*"])
    assert found == ["tokenizer.json"]


def test_a_link_to_the_source_is_not_retired(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pytorch_model").symlink_to(source)
    with pytest.raises(DestinationError, match="never written"):
        check_destination(source, tmp_path / "out", [RECORD], overwrite=True, owned=OWNED)


# -- small files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, MIB - 1, MIB, 2 * MIB + 5])
def test_a_copy_has_the_same_bytes_and_can_be_made_again(nbytes: int, tmp_path: Path) -> None:
    data = os.urandom(nbytes)
    (tmp_path / "blob").write_bytes(data)
    (tmp_path / "tokenizer.json").symlink_to("blob")
    with staging(tmp_path / "out") as stage:
        stage.path("tokenizer.json").write_bytes(b"x" * (nbytes + 7))
        for name in ("tokenizer.json", "tokenizer.json", "deep/copy"):
            stage.copy(name, tmp_path / "tokenizer.json")
        assert not (stage.new / "tokenizer.json").is_symlink()
        stage.publish({RECORD: "{}"})
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == data
    assert (tmp_path / "out" / "deep" / "copy").read_bytes() == data
    assert (tmp_path / "blob").read_bytes() == data


def test_a_staged_text_appears_with_the_result(tmp_path: Path) -> None:
    with staging(tmp_path / "out") as stage:
        stage.text("model.safetensors.index.json", "longer than what follows")
        stage.text("model.safetensors.index.json", "«é»\n")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".streamconv"]
        stage.publish({RECORD: "{}"})
    assert tree(tmp_path / "out") == {"model.safetensors.index.json": "«é»\n", RECORD: "{}"}


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing", "broken link", "device"])
def test_what_is_not_a_regular_file_is_not_copied(kind: str, tmp_path: Path) -> None:
    origin = Path("/dev/zero") if kind == "device" else tmp_path / "origin"
    if kind == "folder":
        origin.mkdir()
    elif kind == "pipe":
        os.mkfifo(origin)
    elif kind == "broken link":
        origin.symlink_to("nowhere")
    with staging(tmp_path / "out") as stage:
        with pytest.raises(SourceError, match=r"not a file|no such file") as caught:
            stage.copy("tokenizer.json", origin)
        assert str(origin) in str(caught.value)
        assert list(stage.new.iterdir()) == []


def test_a_refusal_while_a_small_file_is_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "origin").write_text("data")
    with staging(tmp_path / "out") as stage:
        stage.path("name/below").write_text("")
        with pytest.raises(StorageError, match="cannot write the file: Is a directory"):
            stage.copy("name", tmp_path / "origin")
        with pytest.raises(StorageError, match="cannot write the file: File exists"):
            stage.text("name/below/it", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [(-1, StorageError, "all were when the file was opened"), (1, DamagedError, "was changed while it was copied")],
)
def test_a_file_that_changes_while_it_is_copied_is_not_published(
    change: int, error: type[StreamconvError], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "origin").write_bytes(bytes(MIB))
    write = whole_file.write_file

    def changed(path: Path, nbytes: int, pieces: Iterator[bytes]) -> None:
        os.truncate(tmp_path / "origin", nbytes + change)
        write(path, nbytes, pieces)

    monkeypatch.setattr(whole_file, "write_file", changed)
    with pytest.raises(error, match=words), staging(tmp_path / "out") as stage:
        stage.copy("tokenizer.json", tmp_path / "origin")
    assert not (tmp_path / "out").exists()
