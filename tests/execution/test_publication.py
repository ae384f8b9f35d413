"""A result replaces an older one without a moment in which a mixture of the two passes for a checkpoint."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from streamconv import DamagedError, open_checkpoint
from streamconv.core.errors import DestinationError
from streamconv.core.work_folder import INTENT, RECEIPT
from streamconv.execution.staging import staging
from tests.faults.fault import IO_ERROR, Fault, error, sends
from tests.places import FRAMEWORKS
from tests.processes import run_main
from tests.trees import tree

LLAMA = FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0"
CORE = ("--to", "megatron-core")
OLD = ("--to", "huggingface")
NEW = (*OLD, "--dtype", "bf16", "--overwrite")
CUT_OFF = "a conversion into this folder was cut off while it moved its result into place"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("old") / "out"
    assert run_main(LLAMA, out, *OLD).returncode == 0
    return out


@pytest.fixture(scope="module")
def new(old: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = Path(shutil.copytree(old, tmp_path_factory.mktemp("new") / "out"))
    assert run_main(LLAMA, out, *NEW).returncode == 0
    return tree(out)


def killed(old: Path, folder: Path, *words: object) -> Iterator[Path]:
    """A copy of the old checkpoint for each rename of a run that replaces it: there the run was killed."""
    for at in count(1):
        out = Path(shutil.copytree(old, folder / f"{at}"))
        done = Fault("rename", sends(signal.SIGKILL), out, at).run(LLAMA, out, *words)
        if done.returncode == 0:
            return
        assert done.returncode == -signal.SIGKILL
        yield out


def visible(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if not name.startswith(".streamconv/")}


def test_a_mixture_has_no_config_and_is_refused_by_name(old: Path, new: dict[str, bytes], tmp_path: Path) -> None:
    mixtures = 0
    for out in killed(old, tmp_path, *NEW):
        if visible(out) in (tree(old), new):
            assert "config.json" in visible(out)
            continue
        mixtures += 1
        assert "config.json" not in visible(out)
        if mixtures == 1:
            for words in (("plan", out), ("convert", out, tmp_path / "to", *CORE), ("diff", old, out), ("digest", out)):
                done = run_main(*words)
                assert (done.returncode, CUT_OFF in done.stderr) == (6, True), words
                assert f"  where: {out / '.streamconv' / INTENT}" in done.stderr
            for command in (("inspect", out, "--strict"), ("verify", out)):
                done = run_main(*command)
                assert (done.returncode, CUT_OFF in done.stdout) == (6, True), command
            with pytest.raises(DamagedError, match=CUT_OFF):
                open_checkpoint(out)
        assert run_main(LLAMA, out, *NEW).returncode == 0
        assert tree(out) == new
    assert mixtures > 1


def test_the_folder_of_one_iteration_is_refused_only_while_it_is_moved(tmp_path: Path) -> None:
    assert run_main(LLAMA, tmp_path / "old", *CORE).returncode == 0
    (name,) = (path.name for path in (tmp_path / "old").iterdir() if path.is_dir())
    seen = set()
    for out in killed(tmp_path / "old", tmp_path, *CORE, "--dtype", "bf16", "--overwrite"):
        assert (out / "latest_checkpointed_iteration.txt").exists()
        is_moved = (out / ".streamconv" / INTENT).exists()
        seen.add(is_moved)
        for source in (out, out / name):
            done = run_main("inspect", source, "--strict", "--json")
            assert (CUT_OFF in done.stdout) == is_moved
        shutil.copytree(tmp_path / "old" / name, out / "iter_0000099")
        assert CUT_OFF not in run_main("inspect", out / "iter_0000099").stdout
    assert seen == {False, True}


def test_a_link_that_was_planted_is_neither_followed_nor_moved(
    old: Path, new: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tokenizer.json").write_text("precious")
    for place in ("old/tokenizer.json", "old", "new", "new/tokenizer.json", "replaced-1", "config.json", "journal"):
        out = Path(shutil.copytree(old, tmp_path / place.replace("/", " ")))
        link = out / ".streamconv" / place
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / "elsewhere" / ("tokenizer.json" if "." in place else ""))
        run_main(LLAMA, out, *NEW)
        done = run_main(LLAMA, out, *NEW)
        assert done.returncode == 0, (place, done.stderr)
        assert tree(out) == new
        assert tree(tmp_path / "elsewhere") == {"tokenizer.json": b"precious"}
        assert not any(path.is_symlink() for path in out.rglob("*"))


def half_done(old: Path, folder: Path) -> Path:
    """What a run left that was killed when its weights were in place and its record was not."""
    outs = [out for out in killed(old, folder, *NEW) if "config.json" not in visible(out)]
    return outs[-1]


NO_TEXTS = '{"entries": {"a": 1}, "before": {}, "retired": [], "texts": []}'
DAMAGED = ("", "{", "[]", '{"entries": {}}', "null", NO_TEXTS, "[" * 200_000)


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:9])
def test_a_damaged_intent_is_refused_and_nothing_is_deleted(text: str, old: Path, tmp_path: Path) -> None:
    out = half_done(old, tmp_path)
    (out / ".streamconv" / INTENT).write_text(text)
    before = visible(out), tree(out / ".streamconv" / "new"), tree(out / ".streamconv" / "old")
    for words in (NEW, (*NEW, "--restart")):
        done = run_main(LLAMA, out, *words)
        assert done.returncode == 8, done.stderr
        assert "cannot be undone" in done.stderr
        assert (visible(out), tree(out / ".streamconv" / "new"), tree(out / ".streamconv" / "old")) == before


def test_a_copy_of_a_half_done_publication_is_refused_and_nothing_is_deleted(old: Path, tmp_path: Path) -> None:
    """Its files have other inodes than those that were noted."""
    copy = Path(shutil.copytree(half_done(old, tmp_path), tmp_path / "copy"))
    before = tree(copy)
    done = run_main(LLAMA, copy, *NEW)
    assert done.returncode == 8
    assert "is not the one that it was" in done.stderr
    after = tree(copy)
    assert after == {name: data for name, data in before.items() if name in after}
    assert {name.rpartition(".")[0] for name in before.keys() - after.keys()} <= {".streamconv/owner"}


def test_what_has_been_put_in_the_place_of_the_old_record_is_not_overwritten(old: Path, tmp_path: Path) -> None:
    """Nor is the old record deleted."""
    out = half_done(old, tmp_path)
    (out / "config.json").write_text("another")
    done = run_main(LLAMA, out, *NEW)
    assert done.returncode == 8, done.stderr
    assert "another config.json has been put there meanwhile" in done.stderr
    assert (out / "config.json").read_text() == "another"
    assert (out / ".streamconv" / "old" / "config.json").read_bytes() == (old / "config.json").read_bytes()
    (out / "config.json").unlink()
    assert run_main(LLAMA, out, *NEW).returncode == 0


def test_a_link_to_nothing_is_no_destination(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    done = run_main(LLAMA, tmp_path / "out", *OLD)
    assert done.returncode == 8
    assert "a link to what is not there" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_error_after_the_record_is_in_place_says_that_it_is(
    new: dict[str, bytes], old: Path, tmp_path: Path
) -> None:
    """And the same command again is done at once."""
    said = set()
    for at in count(1):
        out = Path(shutil.copytree(old, tmp_path / f"{at}"))
        done = Fault("sync", IO_ERROR, out, at).run(LLAMA, out, *NEW)
        if done.returncode == 0:
            break
        assert done.returncode == 5
        words = done.stderr.partition("error: ")[2].splitlines()[0]
        is_new = visible(out) == new
        assert ("is in place, and whole" in words) == is_new, words
        assert is_new or visible(out) == tree(old)
        said.add(is_new)
        if is_new:
            again = run_main(LLAMA, out, *(word for word in NEW if word != "--overwrite"))
            assert (again.returncode, tree(out)) == (0, new)
    assert said == {False, True}


def test_a_work_folder_that_cannot_be_removed_is_told_and_no_error(
    old: Path, new: dict[str, bytes], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(old, tmp_path / "out"))
    done = Fault("unlink", error(errno.EIO), out / ".streamconv" / "lock").run(LLAMA, out, *NEW)
    assert done.returncode == 0
    assert f"{out / '.streamconv'} could not be removed; it is not needed any more" in done.stderr
    assert visible(out) == new
    assert run_main(LLAMA, out, *(word for word in NEW if word != "--overwrite")).returncode == 0
    assert tree(out) == new


def test_a_run_that_was_taken_for_dead_publishes_nothing(tmp_path: Path) -> None:
    with staging(tmp_path) as stage:
        stage.text("weights", "new")
        (tmp_path / ".streamconv" / "owner.2").write_text("")
        with pytest.raises(DestinationError, match="taken for dead"):
            stage.publish({"config.json": "{}"})
    assert visible(tmp_path) == {}
    assert (tmp_path / ".streamconv" / "new" / "weights").read_text() == "new"


def test_the_receipt_tells_what_was_made_of_what(old: Path) -> None:
    said = json.loads((old / RECEIPT).read_text())
    assert list(said) == ["streamconv", "source", "target", "family", "iteration", "digest"]
    assert said["target"].startswith("huggingface: TP 1")
    assert len(said["digest"]) == 64
    assert os.fspath(LLAMA) not in (old / RECEIPT).read_text()


def test_a_source_with_a_work_folder_of_its_own_is_not_touched(tmp_path: Path) -> None:
    """It may be the destination of another conversion, which was cut off there."""
    source = Path(shutil.copytree(LLAMA, tmp_path / "source"))
    for name in ("old/weights", "new/weights", "journal"):
        path = source / ".streamconv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    before = tree(source)
    for words in (NEW, (*NEW, "--restart")):
        for out in (source, source / "global_step3"):
            done = run_main(source, out, *words)
            assert done.returncode == 8
            assert "a source is never written" in done.stderr
            assert tree(source) == before
