"""A run of DeepSpeed as frameworks leave it, and what lies beside its state: a model, placeholders, stray files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from streamconv import AmbiguousError, StreamconvError, UnsupportedError, convert
from tests.formats.refusing import planned, refused
from tests.kept import Tensors, assert_same, kept, written
from tests.making.zero import Run, write_run
from tests.places import FRAMEWORKS, REAL
from tests.stored import counted

MEGATRON = next(source for source in REAL if source.name == "dsp_gptuntied_tp2pp1_fp32_z0")


@pytest.mark.parametrize("tag", ["checkpoint", "pytorch_model"], ids=["lightning", "accelerate"])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_tags_of_frameworks_are_found(tag: str, stage: int, tmp_path: Path) -> None:
    """Lightning's ``epoch=1-step=5.ckpt`` has a folder ``checkpoint``, accelerate's ``checkpoint_0`` one that is called
    ``pytorch_model``; with ``latest`` or without.
    """
    root = tmp_path / "epoch=1-step=5.ckpt"
    truth = write_run(root, Run(stage=stage, tag=tag))
    found = kept(root, tmp_path / "a", weights="master")
    assert found.keys() == truth.master().keys()
    assert_same({name: found[name] for name in truth.trained}, truth.trained)
    (root / "latest").unlink()
    assert f"`latest` is missing: took {tag}, the only checkpoint there" in planned(root).warnings
    again = kept(root, tmp_path / "b", weights="master")
    assert_same(again, written(tmp_path / "a"))


TRAINER = FRAMEWORKS / "ds_trainer_llama_z2" / "checkpoint-2"
PLACEHOLDERS = FRAMEWORKS / "ds_trainer_llama_z3" / "checkpoint-2"


def truth_of(root: Path, kind: str) -> Tensors:
    truth = torch.load(root.parents[1].parent / "zero_truth" / f"{root.parent.name}.pt", weights_only=True)
    dtype = {"lp": torch.bfloat16, "fp32": torch.float32}[kind]
    return {name: pair[kind].to(dtype) for name, pair in truth.items()}


def test_of_a_trainers_folder_the_model_is_taken_and_the_state_if_masters_are_asked_for(tmp_path: Path) -> None:
    found = planned(TRAINER)
    assert found.source_format == "Hugging Face"
    remark = 'the run\'s DeepSpeed state lies beside the model: weights="master" takes its masters'
    assert remark in [words.replace("--weights master", 'weights="master"') for words in found.warnings]
    assert_same(kept(TRAINER, tmp_path / "model"), truth_of(TRAINER, "lp"))
    assert_same(kept(TRAINER, tmp_path / "asked", weights="model"), truth_of(TRAINER, "lp"))
    assert_same(kept(TRAINER, tmp_path / "masters", weights="master"), truth_of(TRAINER, "fp32"))
    assert not [words for words in planned(TRAINER, weights="master").warnings if "beside" in words]


def test_of_a_tag_that_is_named_the_model_beside_it_is_no_placeholder() -> None:
    found = planned(TRAINER, tag="global_step2")
    assert found.source_format.startswith("DeepSpeed")
    assert [words for words in found.warnings if "beside" in words] == [
        "model.safetensors lies beside the checkpoint, and is not read"
    ]


def test_placeholders_beside_a_run_are_passed_over_for_its_state(tmp_path: Path) -> None:
    """As the Trainer saves a model at ZeRO-3 whose weights it was not told to gather."""
    shutil.copytree(PLACEHOLDERS, tmp_path / "in")
    wanted = truth_of(PLACEHOLDERS, "fp32")
    save_file({name: torch.empty(0) for name in wanted}, tmp_path / "in" / "model.safetensors")
    assert "the model beside the run holds placeholders: the run's state is taken" in planned(tmp_path / "in").warnings
    assert_same(kept(tmp_path / "in", tmp_path / "out"), wanted)


@pytest.mark.parametrize("shape", [(0,), (1,)], ids=["now", "before-0.4"])
@pytest.mark.parametrize("to", ["safetensors", "huggingface"])
def test_placeholders_alone_are_refused_with_the_place_of_the_weights(
    shape: tuple[int], to: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(TRAINER / "config.json", tmp_path / "in")
    names = sorted(truth_of(TRAINER, "lp"))
    save_file({name: torch.zeros(shape) for name in names}, tmp_path / "in" / "model.safetensors")
    words = (
        f"{len(names)} of {len(names)} tensors, such as {names[0]}, have no elements: they are ZeRO stage 3's "
        "placeholders, and the weights are in the run's global_step* folder"
    )
    remedy = refused(tmp_path / "in", UnsupportedError, words, to=to)
    assert remedy == "give that folder; or save the model with stage3_gather_16bit_weights_on_model_save"


@pytest.mark.parametrize("stray", ["pytorch_model.bin", "model.safetensors", "notes.safetensors"])
@pytest.mark.parametrize("inside", [".", "global_step3"])
def test_a_stray_file_of_weights_is_no_model_in_a_training_folder(stray: str, inside: str, tmp_path: Path) -> None:
    shutil.copytree(MEGATRON.folder, tmp_path / "run")
    tensors = {"w": counted(3)}
    save = torch.save if stray.endswith(".bin") else save_file
    save(tensors, tmp_path / "run" / inside / stray)
    found = kept(tmp_path / "run", tmp_path / "out")
    assert_same(found, kept(MEGATRON.folder, tmp_path / "clean"))
    with pytest.raises(StreamconvError):  # it is not passed over where it is meant
        convert(tmp_path / "run" / inside / stray, tmp_path / "hf", to="huggingface", max_ram="1G")


def test_a_stray_file_of_weights_is_told_of(tmp_path: Path) -> None:
    shutil.copytree(MEGATRON.folder, tmp_path / "run")
    torch.save({"w": counted(3)}, tmp_path / "run" / "pytorch_model.bin")
    found = planned(tmp_path / "run")
    said = [*found.warnings, *(each.name for each in found.dropped), *(each.what for each in found.facts)]
    assert any("pytorch_model.bin" in words for words in said)


def test_a_model_with_its_configuration_beside_a_training_folder_is_ambiguous(tmp_path: Path) -> None:
    shutil.copytree(MEGATRON.folder, tmp_path / "run")
    save_file({"w": counted(3)}, tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "config.json").write_text('{"model_type": "llama"}')
    words = "the folder looks like two checkpoints: deepspeed (the file `latest`) and huggingface (model.safetensors)"
    remedy = refused(tmp_path / "run", AmbiguousError, words)
    assert remedy == "give the folder of the one that is meant (global_step*, iter_*), or name it with tag"
