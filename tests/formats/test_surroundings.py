"""What people give for a checkpoint: the folder that is meant is found, or the error says what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from streamconv import AmbiguousError, DamagedError, SourceError, StreamconvError
from streamconv.core.work_folder import JOURNAL, WORK_FOLDER
from streamconv.formats.registry import known_sources
from streamconv.formats.surroundings import checkpoints_below
from tests.formats.refusing import planned, refused
from tests.kept import assert_same, kept, model
from tests.making.zero import Run, write_run
from tests.places import FRAMEWORKS
from tests.stored import counted

# -- the Hub's cache ---------------------------------------------------------------------------------------------------


def cache(root: Path, snapshots: dict[str, int], main: str | None = None) -> Path:
    """A root of the cache as the Hub's own library lays it out: the files of a snapshot are links to blobs."""
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots").mkdir()
    for name, first in snapshots.items():
        save_file({"w": counted(3, start=first)}, root / "blobs" / f"b{first}")
        (root / "snapshots" / name).mkdir()
        (root / "snapshots" / name / "model.safetensors").symlink_to(root / "blobs" / f"b{first}")
    if main is not None:
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(main)
    return root


OLD, NEW = "a" * 40, "b" * 40


@pytest.mark.parametrize("ending", ["", "\n"])
def test_the_snapshot_that_main_names_is_taken_of_a_caches_root(ending: str, tmp_path: Path) -> None:
    root = cache(tmp_path / "models--org--name", {OLD: 0, NEW: 10}, main=OLD + ending)
    assert_same(kept(root, tmp_path / "out"), {"w": counted(3)})
    remark = f"a root of the Hub's cache: took the snapshot {OLD[:12]}, which refs/main names"
    assert remark in planned(root).warnings


def test_a_cache_that_was_copied_under_another_name_is_one(tmp_path: Path) -> None:
    root = cache(tmp_path / "copied", {OLD: 0, NEW: 10}, main=NEW)
    assert_same(kept(root, tmp_path / "out"), {"w": counted(3, start=10)})


def test_the_only_snapshot_is_taken(tmp_path: Path) -> None:
    root = cache(tmp_path / "models--org--name", {NEW: 10})
    assert planned(root).source == root / "snapshots" / NEW
    assert f"a root of the Hub's cache: took the snapshot {NEW[:12]}, the only one" in planned(root).warnings


@pytest.mark.parametrize("main", [None, "c" * 40, "../../elsewhere", ""])
def test_of_several_snapshots_one_must_be_named(main: str | None, tmp_path: Path) -> None:
    root = cache(tmp_path / "models--org--name", {OLD: 0, NEW: 10}, main=main)
    shutil.copytree(root / "snapshots" / OLD, tmp_path / "elsewhere")
    words = "a root of the Hub's cache with 2 snapshots, and no refs/main says which one is meant"
    remedy = refused(root, AmbiguousError, words)
    assert remedy == f"give one of them: snapshots/{OLD}, snapshots/{NEW}"


def test_a_cache_without_a_snapshot_is_an_unfinished_download(tmp_path: Path) -> None:
    root = cache(tmp_path / "models--org--name", {})
    assert refused(root, SourceError, "a root of the Hub's cache without a snapshot") == "download the model again"


def test_a_snapshot_itself_needs_no_remark(tmp_path: Path) -> None:
    root = cache(tmp_path / "models--org--name", {OLD: 0, NEW: 10}, main=OLD)
    found = planned(root / "snapshots" / NEW)
    assert not [words for words in found.warnings if "cache" in words]
    assert_same(kept(root / "snapshots" / NEW, tmp_path / "out"), {"w": counted(3, start=10)})


# -- a file for a folder, a folder for a file --------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False], ids=["configuration", "none"])
def test_a_file_of_a_model_names_the_folder_that_is_wanted(beside: bool, tmp_path: Path) -> None:
    model(tmp_path / "in", **({"model_type": "llama"} if beside else {}))
    file = tmp_path / "in" / "model.safetensors"
    words = "a file, where the folder of a checkpoint is wanted"
    remedy = refused(file, SourceError, words, to="huggingface")
    assert remedy == f'give {tmp_path / "in"}; or keep its names: to="safetensors"'


def test_a_file_of_a_run_names_the_folder_that_has_the_configuration(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"model_type": "llama"}')
    file = tmp_path / "run" / "global_step3" / "mp_rank_00_model_states.pt"
    words = "a file, where the folder of a checkpoint is wanted"
    assert refused(file, SourceError, words, to="huggingface").startswith(f"give {tmp_path / 'run'}; ")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_folder_that_is_called_as_a_file_is_read(name: str, tmp_path: Path) -> None:
    """zero_to_fp32.py takes the name of a folder, where older recipes give that of a file."""
    inner = tmp_path / "run" / name
    inner.mkdir(parents=True)
    tensors = {"a": counted(3), "b": counted(2, start=3)}
    torch.save({"a": tensors["a"]}, inner / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": tensors["b"]}, inner / "pytorch_model-00002-of-00002.bin")
    places = {each: f"pytorch_model-0000{n}-of-00002.bin" for n, each in enumerate("ab", start=1)}
    (inner / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (tmp_path / "run" / "config.json").write_text('{"model_type": "unheard-of"}')
    assert_same(kept(tmp_path / "run", tmp_path / "out"), tensors)
    assert f"{name} is a folder: its files are read" in planned(tmp_path / "run").warnings
    # The configuration is that of the folder around it.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "unheard-of"
    assert_same(kept(inner, tmp_path / "again"), tensors)


# -- folders of runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["checkpoint-1000", "checkpoint-500", "checkpoint-20"],
        ["checkpoint_10", "checkpoint_9", "checkpoint_0"],
        ["step-300", "step-20"],
    ],
    ids=["trainer", "accelerate", "steps"],
)
def test_of_several_runs_one_must_be_given_those_of_later_steps_first(names: list[str], tmp_path: Path) -> None:
    for name in sorted(names):
        write_run(tmp_path / "runs" / name)
    remedy = refused(tmp_path / "runs", AmbiguousError, f"no checkpoint itself: {len(names)} checkpoints are below it")
    assert remedy == f"give one of {', '.join(str(tmp_path / 'runs' / name) for name in names)}"


def test_a_run_two_folders_below_is_found_and_none_deeper(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "first" / "checkpoint-5")
    model(tmp_path / "runs" / "second")
    write_run(tmp_path / "runs" / "a" / "b" / "c" / "too-deep")
    (tmp_path / "runs" / ".hidden").mkdir()
    model(tmp_path / "runs" / ".hidden" / "model")
    assert checkpoints_below(tmp_path / "runs", known_sources()) == ["first/checkpoint-5", "second"]
    shutil.rmtree(tmp_path / "runs" / "second")
    remedy = refused(tmp_path / "runs", AmbiguousError, "no checkpoint itself: a checkpoint is below it")
    assert remedy == f"give {tmp_path / 'runs' / 'first' / 'checkpoint-5'}"


def test_several_tags_without_latest_must_be_named(tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(tag="global_step10"))
    write_run(tmp_path / "run", Run(tag="global_step9", dp=3))
    (tmp_path / "run" / "latest").unlink()
    words = "2 checkpoints are there, and no file `latest` says which one is meant"
    remedy = refused(tmp_path / "run", AmbiguousError, words)
    assert remedy == "name one with tag: global_step9, global_step10"
    assert_same(kept(tmp_path / "run", tmp_path / "out", tag="global_step10"), truth.module)


# -- no checkpoint -----------------------------------------------------------------------------------------------------


def test_there_is_no_such_folder_or_nothing_in_it(tmp_path: Path) -> None:
    refused(tmp_path / "gone", SourceError, "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", SourceError, "an empty folder")


def test_the_destination_of_an_unfinished_conversion_is_no_checkpoint_yet(tmp_path: Path) -> None:
    work = tmp_path / "out" / WORK_FOLDER
    work.mkdir(parents=True)
    (work / JOURNAL).write_bytes(b"")
    words = "a conversion into this folder has not finished, or is running: there is no checkpoint yet"
    remedy = refused(tmp_path / "out", SourceError, words)
    assert remedy == "run its command again: it goes on where it was"


SEEN = {
    "config.json": "; config.json is a Hugging Face model's, whose weights (model.safetensors, pytorch_model.bin, or "
    "their index) are not there",
    "model-00001-of-00002.safetensors": "; shards of a Hugging Face model without their index "
    "model.safetensors.index.json",
    "__0_0.distcp": "; torch.distributed's files are read as Megatron-Core's, which have metadata.json or common.pt",
    "zero_to_fp32.py": "; DeepSpeed wrote here, and the folder of its checkpoint (global_step*) is not there",
    "notes.txt": "",
}


@pytest.mark.parametrize(("name", "near"), SEEN.items(), ids=list(SEEN))
def test_the_error_says_what_was_seen_and_what_it_is_near_to(name: str, near: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"{}")
    with pytest.raises(SourceError) as caught:
        planned(tmp_path / "in")
    assert caught.value.what.startswith("no checkpoint of Megatron-DeepSpeed, ")
    assert caught.value.what.endswith(f": it has {name}{near}")
    assert (caught.value.remedy or "").startswith("give the folder that has the model's files")


def test_latest_that_names_what_is_not_there_is_damage(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").write_text("global_step7")
    with pytest.raises(StreamconvError) as caught:
        planned(tmp_path / "run")
    assert isinstance(caught.value, SourceError | DamagedError)
    assert "global_step7" in caught.value.what + str(caught.value.where)


def test_an_adapter_alone_is_no_model_of_a_family(tmp_path: Path) -> None:
    adapter = FRAMEWORKS / "ds_trainer_lora_z3" / "checkpoint-2"
    (tmp_path / "in").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, tmp_path / "in")
    with pytest.raises(StreamconvError, match="an adapter"):
        planned(tmp_path / "in", to="huggingface")
