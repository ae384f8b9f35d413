"""A source is the file that was opened: another one in its place is refused, before the first write and at the end.

Where a container has no checksums, nothing else would tell.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import streamconv
from streamconv.core.errors import DamagedError, DestinationError, StreamconvError
from streamconv.execution.options import RunOptions
from streamconv.execution.run import run_plan
from streamconv.planning.plan import Plan
from tests.places import FIXTURES, REAL

BLOOM = REAL[1].folder
DISTCP = FIXTURES / "megatron_core" / "torch_dist_gpt_tp2pp2"
SERIAL = RunOptions(jobs=1, engine="serial")
CHANGED = "the file was changed after it was opened"


class EndedError(Exception):
    """What ends a run early."""


def keeping_times(path: Path, change: Callable[[], object]) -> None:
    """Change a file as ``cp -p`` of another one does: its time of change stays, and here its size too."""
    status = path.stat()
    change()
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap_layers(path: Path) -> None:
    """Give two layers of a Hugging Face model each other's names: the same shapes, the same size, other places."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[:end].replace(b".h.0.", b".h.X.").replace(b".h.1.", b".h.0.").replace(b".h.X.", b".h.1.")
    assert header != data[:end]
    keeping_times(path, lambda: path.write_bytes(header + data[end:]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "hf"
    streamconv.convert(BLOOM, folder, to="huggingface")
    return folder


@pytest.fixture
def hugging_face(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "hf"))


def refused(work: Plan, out: Path | None, **more: Any) -> str:
    with pytest.raises(DamagedError) as caught:
        run_plan(work, out, SERIAL, **more)
    return str(caught.value)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [append, touch, Path.unlink])
@pytest.mark.parametrize("source", [BLOOM, DISTCP], ids=["torch", "distcp"])
def test_a_file_that_changed_after_planning_is_refused(
    source: Path, change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "src"))
    work = streamconv.plan(folder, to="megatron-legacy")
    path = work.source_paths[3]
    change(path)
    words = refused(work, tmp_path / "out")
    assert str(path) in words
    assert ("gone" if change is Path.unlink else CHANGED) in words
    assert not (tmp_path / "out").exists()
    with pytest.raises(DamagedError, match=r"after it was opened|is gone"):
        run_plan(work, None, SERIAL)


def test_a_model_with_its_layers_swapped_after_planning_is_refused(hugging_face: Path, tmp_path: Path) -> None:
    path = hugging_face / "model.safetensors"
    work = streamconv.plan(hugging_face, to="megatron-legacy", tp=2)
    before = run_plan(work, None, SERIAL)
    assert before.records_without_crc > 0
    swap_layers(path)
    assert CHANGED in refused(work, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DamagedError, match=CHANGED):
        run_plan(work, None, SERIAL)


def test_a_model_that_is_swapped_while_it_is_converted_is_not_published(hugging_face: Path, tmp_path: Path) -> None:
    work = streamconv.plan(hugging_face, to="megatron-legacy")
    swapped: list[int] = []

    def swap(done: int, total: int) -> None:
        if not swapped:
            swap_layers(hugging_face / "model.safetensors")
            swapped.append(done)

    assert CHANGED in refused(work, tmp_path / "out", progress=swap)
    assert swapped
    assert not list((tmp_path / "out").glob("iter_*"))
    run_plan(streamconv.plan(hugging_face, to="megatron-legacy"), tmp_path / "out", SERIAL)
    assert streamconv.verify(tmp_path / "out", hugging_face).exit_code == 0  # nothing of the first run is left


def test_a_run_is_not_resumed_from_a_model_that_was_swapped(hugging_face: Path, tmp_path: Path) -> None:
    """Its size and its time of change are those of the model that the run began with; its header is not."""
    work = streamconv.plan(hugging_face, to="megatron-legacy")

    def interrupt(done: int, total: int) -> None:
        if 2 * done > total:
            raise EndedError

    with pytest.raises(EndedError):
        run_plan(work, tmp_path / "out", SERIAL, progress=interrupt)
    swap_layers(hugging_face / "model.safetensors")
    with pytest.raises(DestinationError, match=r"its source has changed since: .*model\.safetensors"):
        run_plan(streamconv.plan(hugging_face, to="megatron-legacy"), tmp_path / "out", SERIAL)


def test_files_of_torch_without_checksums(tmp_path: Path) -> None:
    """The header of a zip is its directory and its pickle; before 1.6 it is the pickles in front of the data."""
    enabled = torch.serialization.get_crc32_options()
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        path = tmp_path / name
        torch.serialization.set_crc32_options(False)
        try:
            torch.save({"a": torch.ones(300), "b": torch.zeros(300)}, path, _use_new_zipfile_serialization=zipped)
            opened = streamconv.open_checkpoint(path)
            found = opened["a"].pieces[0].views[0].storage
            assert (found.crc, found.identity is not None) == (None, True)
            assert opened["b"].torch().sum() == 0
            keeping_times(
                path,
                lambda path=path, zipped=zipped: torch.save(  # type: ignore[misc]
                    {"b": torch.ones(300), "a": torch.zeros(300)}, path, _use_new_zipfile_serialization=zipped
                ),
            )
        finally:
            torch.serialization.set_crc32_options(enabled)
        other = tmp_path / f"other-{name}"
        shutil.copy(path, other)

        def touched(done: int, total: int, path: Path = path) -> None:
            os.utime(path)

        with pytest.raises(DamagedError, match=CHANGED):
            streamconv.diff(path, other, progress=touched)


def test_a_lazy_tensor_of_a_file_that_is_not_there_any_more(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    tensor = streamconv.open_checkpoint(path)["a"]
    touch(path)
    with pytest.raises(DamagedError, match=CHANGED):
        tensor.numpy()
    path.unlink()
    with pytest.raises(DamagedError, match="the file is gone since it was opened"):
        tensor.torch()


def test_a_stream_of_a_source_that_changes(hugging_face: Path) -> None:
    stream = streamconv.stream(hugging_face, to="megatron-legacy")
    next(stream)
    swap_layers(hugging_face / "model.safetensors")
    with pytest.raises(DamagedError, match=CHANGED):
        list(stream)


def test_a_copied_file_that_changes_while_others_are_converted(hugging_face: Path, tmp_path: Path) -> None:
    tokenizer = hugging_face / "tokenizer.json"
    tokenizer.write_text("{}")
    work = streamconv.plan(BLOOM, to="huggingface", tokenizer=hugging_face)
    assert tokenizer in work.copied.values()
    changes = iter([lambda: tokenizer.write_text("{ }")])
    words = refused(work, tmp_path / "out", progress=lambda done, total: next(changes, int)())
    assert str(tokenizer) in words
    tokenizer.unlink()
    with pytest.raises(StreamconvError):
        run_plan(work, tmp_path / "other", SERIAL)


def test_a_plan_has_the_identity_of_every_file_that_is_read() -> None:
    first, second = (streamconv.plan(BLOOM) for _ in range(2))
    assert [each.digest for each in first.identities] == [each.digest for each in second.identities]
    assert {each.path for each in first.identities} >= set(first.source_paths)
    assert len({each.digest for each in first.identities}) == len(first.identities)


def test_nothing_is_written_into_a_root_that_was_given(tmp_path: Path) -> None:
    root = Path(shutil.copytree(BLOOM, tmp_path / "src"))
    before = sorted(root.rglob("*"))
    with pytest.raises(DestinationError, match="the destination is inside the source"):
        streamconv.convert(root, root / "hf", to="huggingface")
    assert sorted(root.rglob("*")) == before
