"""A result appears whole or not at all, and what was there before is not lost on the way."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from streamconv.core.errors import DestinationError, DiskSpaceError, StorageError
from streamconv.execution.destination import check_destination
from streamconv.execution.staging import staging
from streamconv.io.output import OutputFileWriter
from tests.places import ROOT
from tests.processes import other_process
from tests.running import clear_leftovers
from tests.small_disk import small_disk

MIB = 1 << 20
TRACKER = "latest_checkpointed_iteration.txt"
ITER = "iter_0000003"
OLD, NEW = "old weights", "new weights"


def check(source: Path, destination: Path, *, overwrite: bool = False) -> None:
    check_destination(source, destination, [ITER, TRACKER], overwrite=overwrite)


def tree(root: Path) -> dict[str, str]:
    """Every file below a folder with its text, and every empty folder with none."""
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else ""
        for path in sorted(root.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def checkpoint(root: Path, text: str = OLD, name: str = ITER) -> Path:
    """A small checkpoint of two ranks with its tracker."""
    for rank in range(2):
        path = root / name / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        path.parent.mkdir(parents=True)
        path.write_text(f"{text} {rank}")
    (root / TRACKER).write_text(str(int(name[-7:])))
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "trained" / "global_step3"
    folder.mkdir(parents=True)
    (folder / "layer_01-model_00-model_states.pt").write_text("weights")
    return folder


# -- where a result may go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("relative", [".", "converted", "converted/deep", "..", "../../trained", "../global_step3"])
def test_the_source_is_never_written(relative: str, overwrite: bool, source: Path) -> None:
    with pytest.raises(DestinationError, match="a source is never written"):
        check(source, source / relative, overwrite=overwrite)


def test_a_link_to_the_source_is_the_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for destination in (tmp_path / "link", tmp_path / "link" / "converted", tmp_path / "link" / ".."):
        with pytest.raises(DestinationError, match="a source is never written"):
            check(source, destination)
    with pytest.raises(DestinationError, match="a source is never written"):
        check(tmp_path / "link", source)


def test_a_destination_whose_entry_holds_the_source_is_refused_even_to_be_overwritten(tmp_path: Path) -> None:
    source = tmp_path / ITER / "deepspeed" / "global_step3"
    source.mkdir(parents=True)
    with pytest.raises(DestinationError):
        check(source, tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_destination(overwrite: bool, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("notes")
    with pytest.raises(DestinationError, match="not a folder"):
        check(source, tmp_path / "out", overwrite=overwrite)


@pytest.mark.parametrize("name", [ITER, "iter_0000100", TRACKER, "release"])
def test_a_checkpoint_is_replaced_only_when_that_is_said(name: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    with pytest.raises(DestinationError, match="holds a checkpoint") as caught:
        check(source, out)
    assert name in str(caught.value)
    assert "--overwrite" in str(caught.value)
    check(source, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == [name]


def test_other_files_do_not_make_a_checkpoint(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "logs").mkdir(parents=True)
    (out / "tokenizer.json").write_text("{}")
    (out / ".streamconv").mkdir()
    check(source, out)


def test_a_new_or_empty_folder_is_fine_and_is_not_made(source: Path, tmp_path: Path) -> None:
    check(source, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "out").mkdir()
    check(source, tmp_path / "out")
    check(source, source.parent / "converted")
    check(source, source.parent.with_name("trained-too"))


# -- the lock --------------------------------------------------------------------------------------------------------


HOLDS_THE_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("ready", flush=True)
input()
"""
CONVERTS = """
import sys
from pathlib import Path
from streamconv.execution.staging import staging
with staging(Path(sys.argv[1])) as stage:
    stage.path("iter_0000003/model.pt").write_text("new weights")
    print("ready", flush=True)
    input()
    stage.publish({"latest_checkpointed_iteration.txt": "3"})
"""


def test_a_folder_that_another_process_has_locked_is_in_use(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / ".streamconv").mkdir()
    before = tree(tmp_path)
    with other_process(HOLDS_THE_LOCK, tmp_path / ".streamconv/lock"):
        with pytest.raises(DestinationError, match="another conversion is writing there"), staging(tmp_path):
            pass
        assert tree(tmp_path) | {".streamconv": ""} == before | {".streamconv/lock": "", ".streamconv": ""}
    with staging(tmp_path):
        pass
    assert not (tmp_path / ".streamconv").exists()


def test_a_conversion_is_not_disturbed_by_another_that_is_refused(tmp_path: Path) -> None:
    with other_process(CONVERTS, tmp_path) as process:
        for _ in range(3):
            with pytest.raises(DestinationError, match="another conversion"), staging(tmp_path):
                pass
    assert process.returncode == 0
    assert tree(tmp_path) == {f"{ITER}/model.pt": NEW, TRACKER: "3"}


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write there"), staging(tmp_path / "file" / "out"):
        pass


def test_a_refused_run_gives_the_lock_back(tmp_path: Path) -> None:
    (tmp_path / ".streamconv").mkdir()
    (tmp_path / ".streamconv/new").write_text("a file where a folder must be")
    with pytest.raises(StorageError, match="cannot write there"), staging(tmp_path):
        pass
    with staging(tmp_path) as stage:
        assert stage.new.is_dir()


# -- leftovers -------------------------------------------------------------------------------------------------------


def test_the_work_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    before = tree(tmp_path)
    with other_process(CONVERTS, tmp_path) as process:
        process.kill()
    assert (tmp_path / ".streamconv/new" / ITER / "model.pt").exists()
    with staging(tmp_path) as stage:
        assert list(stage.new.iterdir()) == []
        assert not (stage.work / "old").exists()
        assert {key: text for key, text in tree(tmp_path).items() if not key.startswith(".")} == before
    assert tree(tmp_path) == before


def test_a_checkpoint_that_was_moved_aside_and_not_replaced_is_put_back(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    before = tree(tmp_path)
    (tmp_path / ".streamconv/old").mkdir(parents=True)
    (tmp_path / ITER).rename(tmp_path / ".streamconv/old" / ITER)
    with staging(tmp_path):
        assert (tmp_path / ITER / "mp_rank_01/model_optim_rng.pt").read_text() == f"{OLD} 1"
    assert tree(tmp_path) == before


def test_a_checkpoint_that_was_moved_aside_and_replaced_is_removed(tmp_path: Path) -> None:
    checkpoint(tmp_path, NEW)
    before = tree(tmp_path)
    checkpoint(tmp_path / ".streamconv/old")
    with staging(tmp_path):
        pass
    assert tree(tmp_path) == before


# -- failure ---------------------------------------------------------------------------------------------------------


def write_and_fail(destination: Path, error: type[BaseException]) -> None:
    with staging(destination) as stage:
        stage.path(f"{ITER}/mp_rank_00/model_optim_rng.pt").write_text(NEW)
        raise error("stopped")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StorageError])
def test_a_failure_leaves_the_destination_as_it_was(error: type[BaseException], tmp_path: Path) -> None:
    checkpoint(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(error):
        write_and_fail(tmp_path, error)
    assert tree(tmp_path) == before


def test_a_failure_removes_a_folder_that_was_made_for_the_result(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "out", RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError), staging(tmp_path / "out"):
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


# -- publishing ------------------------------------------------------------------------------------------------------


def write_result(destination: Path, name: str = ITER) -> None:
    with staging(destination) as stage:
        for rank in range(2):
            stage.path(f"{name}/mp_rank_{rank:02d}/model_optim_rng.pt").write_text(f"{NEW} {rank}")
        stage.publish({TRACKER: str(int(name[-7:]))})


def whole(text: str, name: str = ITER) -> dict[str, str]:
    return {f"{name}/mp_rank_{rank:02d}/model_optim_rng.pt": f"{text} {rank}" for rank in range(2)}


def test_a_result_is_moved_whole_into_a_folder_that_is_made(tmp_path: Path) -> None:
    write_result(tmp_path / "deep" / "out")
    assert tree(tmp_path / "deep" / "out") == whole(NEW) | {TRACKER: "3"}


def test_a_result_replaces_what_has_its_name_and_nothing_else(tmp_path: Path) -> None:
    checkpoint(tmp_path, "other weights", "iter_0000001")
    checkpoint(tmp_path)
    (tmp_path / ITER / "left over by another layout").write_text("")
    (tmp_path / "notes").write_text("keep me")
    write_result(tmp_path)
    others = whole("other weights", "iter_0000001") | {"notes": "keep me"}
    assert tree(tmp_path) == whole(NEW) | others | {TRACKER: "3"}


PUBLISHES = """
import os, signal, sys
from pathlib import Path
from streamconv.execution import publication
from streamconv.execution.staging import staging

stop, name = int(sys.argv[2]), sys.argv[3]
if sys.argv[4] == "renames":  # as on a file system that cannot exchange names
    publication.exchange = lambda first, second: False
seen = 0

def count(event, arguments):
    global seen
    if event == "os.rename" and str(arguments[0]).endswith(".part"):
        return  # a small file that is written
    if event == "os.rename" or (event == "ctypes.dlsym" and arguments[1] == "renameat2"):
        paths = arguments[:2] if event == "os.rename" else ()
        print(*(os.path.relpath(path, sys.argv[1]) for path in paths), flush=True)
        if seen == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

with staging(Path(sys.argv[1])) as stage:
    for rank in range(2):
        stage.path(f"{name}/mp_rank_{rank:02d}/model_optim_rng.pt").write_text(f"new weights {rank}")
    sys.addaudithook(count)
    stage.publish({"latest_checkpointed_iteration.txt": str(int(name[-7:]))})
"""


def publish_until(
    destination: Path, renames: int, name: str = ITER, how: str = "exchange"
) -> tuple[int, list[list[str]]]:
    """Publish in a process that is killed when it has renamed so often: its exit code, and what it renamed.

    An exchange of two names counts as one, and is listed without them.
    """
    words = [sys.executable, "-c", PUBLISHES, str(destination), str(renames), name, how]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, [line.split() for line in done.stdout.splitlines()]


def test_the_tracker_is_written_last(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    code, renames = publish_until(tmp_path, 99)
    assert code == 0
    assert renames == [[], [f".streamconv/{TRACKER}", TRACKER]]
    assert tree(tmp_path) == whole(NEW) | {TRACKER: "3"}


def test_where_names_cannot_be_exchanged_the_old_one_is_moved_aside(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    code, renames = publish_until(tmp_path, 99, how="renames")
    assert code == 0
    assert renames == [
        [ITER, f".streamconv/old/{ITER}"],
        [f".streamconv/new/{ITER}", ITER],
        [f".streamconv/{TRACKER}", TRACKER],
    ]
    assert tree(tmp_path) == whole(NEW) | {TRACKER: "3"}


def assert_loads(folder: Path, *states: tuple[str, str]) -> None:
    """The tracker's checkpoint is there, and is one of these whole."""
    number = int((folder / TRACKER).read_text())
    name = f"iter_{number:07d}"
    assert (folder / name).is_dir(), f"the tracker says {number}, and {name} is not there"
    assert tree(folder / name) in [tree_of(whole(text, name), name) for text, name_ in states if name_ == name]


def tree_of(files: dict[str, str], name: str) -> dict[str, str]:
    return {key.removeprefix(f"{name}/"): text for key, text in files.items()}


@pytest.mark.parametrize("name", [ITER, "iter_0000008"])
@pytest.mark.parametrize("renames", range(2))
def test_a_run_killed_anywhere_leaves_a_checkpoint_that_loads(renames: int, name: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    code, _ = publish_until(tmp_path, renames, name)
    assert code == -signal.SIGKILL
    assert_loads(tmp_path, (OLD, ITER), (NEW, name))


@pytest.mark.parametrize("name", [ITER, "iter_0000008"])
@pytest.mark.parametrize("renames", range(3))
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_the_run_after_a_killed_one_finds_a_checkpoint_that_loads(
    renames: int, name: str, how: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path)
    publish_until(tmp_path, renames, name, how)
    with staging(tmp_path):
        assert_loads(tmp_path, (OLD, ITER), (NEW, name))
    assert not (tmp_path / ".streamconv").exists()
    write_result(tmp_path, name)
    assert_loads(tmp_path, (NEW, name))


@pytest.mark.parametrize("held", [True, False], ids=["old", "empty"])
def test_a_tracker_that_cannot_be_written_leaves_what_was_there(held: bool, tmp_path: Path) -> None:
    if held:
        checkpoint(tmp_path)
        (tmp_path / TRACKER).unlink()
    (tmp_path / TRACKER).mkdir()
    (tmp_path / TRACKER / "in the way").write_text("")
    before = tree(tmp_path)
    with contextlib.suppress(StorageError, OSError):
        write_result(tmp_path)
    assert tree(tmp_path) == before


def test_a_refusal_while_publishing_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / TRACKER).mkdir()
    (tmp_path / TRACKER / "in the way").write_text("")
    with pytest.raises(StorageError):
        write_result(tmp_path)


# -- room ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_disk(tmp_path / "disk", 1 << 20) as folder:
        yield folder


def test_a_job_larger_than_what_is_free_is_refused(tmp_path: Path) -> None:
    with staging(tmp_path / "out") as stage:
        stage.need(0)
        stage.need(1)
        with pytest.raises(DiskSpaceError, match=r"the result has 4096\.00 TiB, the disk has"):
            stage.need(1 << 52)


def test_room_is_that_of_the_destinations_disk(full_soon: Path) -> None:
    with staging(full_soon / "out") as stage:
        stage.need(MIB // 2)
        with pytest.raises(DiskSpaceError, match=r"the result has 2\.00 MiB") as caught:
            stage.need(2 * MIB)
    assert "free 1.0" in str(caught.value)
    assert list(full_soon.iterdir()) == []


def test_room_that_is_not_there_is_refused_before_the_first_write(full_soon: Path) -> None:
    with staging(full_soon / "out") as stage:
        path = stage.path("model.pt")
        with pytest.raises(DiskSpaceError, match="cannot create the file: No space left on device") as caught:
            OutputFileWriter(path, 2 * MIB, 64 << 10)
        assert "model.pt" in str(caught.value)
        assert "free disk space" in str(caught.value)
    assert list(full_soon.iterdir()) == []


def test_one_write_that_fits_in_part_is_no_success(full_soon: Path) -> None:
    writer = OutputFileWriter(full_soon / "model.pt", 64 << 10, 16 * MIB)
    with contextlib.closing(writer), pytest.raises(DiskSpaceError):
        writer.write(64 << 10, bytes([1]) * (2 * MIB), 0, 2 * MIB)


def test_a_disk_that_is_full_before_the_tracker_leaves_what_was_there(full_soon: Path) -> None:
    out = checkpoint(full_soon / "out")
    before = tree(out)
    refusals: list[Exception] = []
    with staging(out) as stage:
        stage.path(f"{ITER}/mp_rank_00/model_optim_rng.pt").write_text(NEW)
        with contextlib.suppress(OSError), (full_soon / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        try:
            stage.publish({TRACKER: "3"})
        except (StorageError, DiskSpaceError, OSError) as error:
            refusals.append(error)
    assert tree(out) == before
    assert [type(error) for error in refusals] == [DiskSpaceError]


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4096, 10_000, 1 << 30])
def test_parts_written_out_of_order_by_two_threads_make_the_file(window: int, tmp_path: Path) -> None:
    rng = random.Random(window)
    data = rng.randbytes(300_000)
    bounds = [0, *sorted(rng.sample(range(1, len(data)), 400)), len(data)]
    parts = list(pairwise(bounds))
    rng.shuffle(parts)
    writer = OutputFileWriter(tmp_path / "file", len(data), window)

    def write(part: tuple[int, int]) -> None:
        writer.write(part[0], data, part[0], part[1] - part[0])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, parts))
    writer.finish()
    assert (tmp_path / "file").read_bytes() == data


def test_a_file_has_its_length_from_the_start_and_zeros_where_nothing_was_written(tmp_path: Path) -> None:
    writer = OutputFileWriter(tmp_path / "file", 10_000, 4096)
    assert (tmp_path / "file").stat().st_size == 10_000
    writer.write(9_998, b"ab", 0, 2)
    writer.write(5, b"", 0, 0)
    writer.finish()
    assert (tmp_path / "file").read_bytes() == bytes(9_998) + b"ab"


def test_a_file_without_bytes_is_made(tmp_path: Path) -> None:
    OutputFileWriter(tmp_path / "file", 0, 4096).finish()
    assert (tmp_path / "file").read_bytes() == b""


def test_a_path_that_exists_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(StorageError, match="cannot create the file"):
            OutputFileWriter(tmp_path / name, 3, 4096)
    assert tree(tmp_path) == dict.fromkeys(("file", "elsewhere", "link"), "precious")


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file") as caught:
        OutputFileWriter(tmp_path / "nowhere" / "file", 3, 4096)
    assert "nowhere" in str(caught.value)


def test_a_closed_file_is_closed_once(tmp_path: Path) -> None:
    writer = OutputFileWriter(tmp_path / "file", 4, 4096)
    writer.finish()
    writer.close()
    with pytest.raises(StorageError, match="cannot write 2 bytes at 0"):
        writer.write(0, b"ab", 0, 2)


# -- what a killed run had begun to publish ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exchange", "renames"])
@pytest.mark.parametrize("renames", range(3))
@pytest.mark.parametrize("held", [True, False], ids=["old", "empty"])
def test_what_was_half_published_is_moved_out_again(held: bool, renames: int, how: str, tmp_path: Path) -> None:
    if held:
        checkpoint(tmp_path)
    before = tree(tmp_path)
    code, _ = publish_until(tmp_path, renames, how=how)
    clear_leftovers(tmp_path)
    expected = before if code else whole(NEW) | {TRACKER: "3"}
    assert tree(tmp_path) == expected


def test_a_signal_waits_until_the_publication_is_whole(tmp_path: Path) -> None:
    program = PUBLISHES.replace("signal.SIGKILL", "signal.SIGTERM")
    for renames in range(2):
        folder = tmp_path / str(renames)
        folder.mkdir()
        checkpoint(folder)
        words = [sys.executable, "-c", program, str(folder), str(renames), ITER, "exchange"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGTERM
        clear_leftovers(folder)
        assert tree(folder) == whole(NEW) | {TRACKER: "3"}


def test_a_root_whose_tag_is_a_link_is_still_the_sources_own(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "global_step3").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "global_step3").symlink_to(tmp_path / "elsewhere" / "global_step3")
    with pytest.raises(DestinationError, match="never written"):
        check_destination(tmp_path / "root" / "global_step3", tmp_path / "root", [ITER, TRACKER], overwrite=True)


@pytest.mark.parametrize("inside", ["root/out", "root/a/b", "root/global_step3/out", "elsewhere/global_step3/out"])
def test_a_destination_inside_the_source_is_refused(inside: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (tmp_path / "elsewhere" / "global_step3").mkdir(parents=True)
    root.mkdir()
    (root / "global_step3").symlink_to(tmp_path / "elsewhere" / "global_step3")
    with pytest.raises(DestinationError, match="inside the source; a source is never written"):
        check_destination(root / "global_step3", tmp_path / inside, [ITER, TRACKER], overwrite=True, root=root)
    check_destination(root / "global_step3", tmp_path / "beside", [ITER, TRACKER], overwrite=False, root=root)
