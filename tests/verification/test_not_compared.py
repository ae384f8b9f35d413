"""A verdict speaks of what was looked at: the rest is compared too, or named, and never called equal."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import streamconv
from streamconv import convert, diff, inspect, verify
from streamconv.core.errors import DamagedError, SourceError
from streamconv.report.differences import comparison_dict
from streamconv.verification.comparison import Comparison
from tests.damage import cut, flip, records, set_tensor
from tests.places import FRAMEWORKS, REAL

ZERO3, MOE, BLOOM = FRAMEWORKS / "z3_bf16_frozen", FRAMEWORKS / "ds_moe_z1_ep2", REAL[1].folder
EXPERT = "layer_1_expert_2_mp_rank_00_model_states.pt"
RAM: dict[str, Any] = {"max_ram": "2G"}


def copied(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def file_of(root: Path, name: str) -> Path:
    (path,) = root.rglob(name)
    return path


def add(path: Path, name: str, number: float) -> None:
    """Add a number to each element of a tensor."""
    set_tensor(path, name, streamconv.open_checkpoint(path)[name].torch() + number)


def not_compared(found: Comparison) -> list[tuple[str, int]]:
    return [(Path(each.name).name, each.exit_code) for each in found.not_compared]


def test_parameters_in_flat_partitions_are_compared(tmp_path: Path) -> None:
    other = copied(ZERO3, tmp_path / "other")
    same = diff(ZERO3, other, **RAM)
    values = ("what is no tensor in files of tensors", 0)
    assert (same.exit_code, same.is_equal, not_compared(same)) == (0, True, [values])
    assert "lm_head.weight" in same.a.tensors
    assert any(name.startswith("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt:") for name in same.a.tensors)
    for path in other.rglob("*_optim_states.pt"):
        add(path, "optimizer_state_dict.fp32_flat_groups.0", 1)
    found = diff(ZERO3, other, **RAM)
    assert (found.exit_code, found.is_equal) == (7, False)
    frozen = {f"layers.1.{name}" for name in ("ln", "query_key_value", "dense")}
    changed = {each.name for each in found.values}
    assert changed == {
        name
        for name in same.a.tensors
        if ":" not in name and not name.endswith("scale_buf") and name.rpartition(".")[0] not in frozen
    }
    assert all(each.elements == each.numel and each.max_abs == pytest.approx(1) for each in found.values)
    assert verify(other, ZERO3, **RAM).exit_code == 7


def test_a_changed_expert_is_found(tmp_path: Path) -> None:
    other = copied(MOE, tmp_path / "other")
    assert diff(MOE, other, **RAM).is_equal
    name = "layers.1.mlp.deepspeed_moe.experts.deepspeed_experts.2.dense_h_to_4h.bias"
    add(file_of(other, EXPERT), name, 0.5)
    found = diff(MOE, other, **RAM)
    assert ([each.name for each in found.values], found.exit_code) == ([name], 7)


def test_an_expert_that_is_gone_is_found(tmp_path: Path) -> None:
    other = copied(MOE, tmp_path / "other")
    file_of(other, EXPERT).unlink()
    found = diff(MOE, other, **RAM)
    assert (found.exit_code, {name.partition(":")[0] for name in found.only_a}) == (7, {EXPERT})
    assert verify(other, MOE, **RAM).exit_code == 6
    gone = diff(other, copied(other, tmp_path / "again"), **RAM)
    assert (gone.exit_code, gone.is_equal) == (6, False)
    assert not_compared(gone).count(("global_step2", 6)) == 2


def test_what_is_broken_on_both_sides_is_not_equal(tmp_path: Path) -> None:
    first, second = (copied(MOE, tmp_path / name) for name in "ab")
    for root in (first, second):
        cut(file_of(root, EXPERT), 700)
    found = diff(first, second, **RAM)
    assert (found.exit_code, found.is_equal) == (6, False)
    assert (EXPERT, 6) in not_compared(found)
    assert found.compared > 20


def test_files_of_other_kinds_are_compared_byte_by_byte(tmp_path: Path) -> None:
    first, second = (copied(MOE, tmp_path / name) for name in "ab")
    for root in (first, second):
        file_of(root, EXPERT).with_name("notes.bin").write_bytes(b"these are notes")
    assert diff(first, second, **RAM).is_equal
    file_of(second, "notes.bin").write_bytes(b"those are notes")
    (value,) = diff(first, second, **RAM).values
    assert (value.name, value.elements, value.b.offset) == ("notes.bin", 1, 2)


def test_nothing_is_not_equal(tmp_path: Path) -> None:
    save_file({"empty": torch.empty(0, 4)}, tmp_path / "a.safetensors")
    save_file({"empty": torch.empty(0, 4)}, tmp_path / "b.safetensors")
    found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **RAM)
    assert (found.exit_code, found.is_equal, found.compared, found.nbytes) == (3, False, 1, 0)
    assert str(found).startswith("nothing was compared")
    assert verify(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **RAM).exit_code == 3


def test_of_models_the_parameters_are_compared_and_the_rest_is_named(tmp_path: Path) -> None:
    other = copied(BLOOM, tmp_path / "other")
    add(file_of(other, "mp_rank_00_model_states.pt"), "optimizer.state.0.exp_avg", 1)
    file_of(other, "mp_rank_00_model_states.pt").with_name("extra.pt").write_bytes(b"x")
    found = diff(BLOOM, other, **RAM)
    assert (found.exit_code, found.is_equal) == (0, True)
    assert str(found).startswith("the parameters are equal")
    left_out = {each.name: each.exit_code for each in found.not_compared}
    assert left_out["324 tensors of optimizer in mp_rank files"] == 0
    assert left_out["extra.pt"] == 0
    assert not [name for name in left_out if "layer_" in name]
    everything = diff(BLOOM, other, everything=True, **RAM)
    assert (everything.exit_code, everything.only_b) == (7, ["global_step3/extra.pt"])
    state = "global_step3/mp_rank_00_model_states.pt:optimizer.state.0.exp_avg"
    assert [each.name for each in everything.values] == [state]
    assert diff(BLOOM, BLOOM, everything=True, **RAM).is_equal


def test_a_conversion_verifies_and_says_what_was_left_out(tmp_path: Path) -> None:
    convert(BLOOM, tmp_path / "hf", to="huggingface", **RAM)
    found = verify(tmp_path / "hf", BLOOM, **RAM)
    assert found.comparison is not None
    assert (found.exit_code, found.comparison.is_faithful) == (0, True)
    assert {each.exit_code for each in found.comparison.not_compared} == {0}


# -- what is beside, behind and between --------------------------------------------------------------------------------


def test_files_beside_the_checkpoints_folder_are_compared_and_checked(tmp_path: Path) -> None:
    """The HF Trainer saves files beside DeepSpeed's folder; other checkpoints of the root are others."""
    first, second = (copied(MOE, tmp_path / name) for name in "ab")
    for root in (first, second):
        torch.save({"w": torch.ones(8)}, root / "rng_state.pth")
        copied(MOE / "global_step2", root / "global_step1")
        (root / "pytorch_model.bin").mkdir()
        torch.save({"w": torch.ones(8)}, root / "pytorch_model.bin" / "pytorch_model.bin")
    same = diff(first, second, **RAM)
    assert same.is_equal
    assert "../rng_state.pth:w" in same.a.tensors
    assert ("global_step1", 0) in not_compared(same)
    torch.save({"w": torch.zeros(8)}, second / "rng_state.pth")
    assert [each.name for each in diff(first, second, **RAM).values] == ["../rng_state.pth:w"]
    place = second / "pytorch_model.bin" / "pytorch_model.bin"
    start, _ = records(place)["data/0"]
    flip(place, start, 0)
    assert verify(second, **RAM).exit_code == 6
    assert verify(first, **RAM).exit_code == 0
    with pytest.raises(DamagedError, match="its CRC-32 is"):
        diff(first, second, everything=True, **RAM)


def test_linked_folders_are_looked_into(tmp_path: Path) -> None:
    first, second = (copied(FRAMEWORKS / "z1_bf16.universal", tmp_path / name) for name in "ab")
    for root in (first, second):
        (zero,) = root.rglob("zero")
        zero.rename(root.with_name(f"{root.name}-zero"))
        zero.symlink_to(root.with_name(f"{root.name}-zero"))
        (zero / "loop").symlink_to(root)
    assert diff(first, second, **RAM).is_equal
    (path,) = (tmp_path / "b-zero" / "norm.weight").rglob("fp32.pt")
    add(path, "param", 1)
    assert diff(first, second, **RAM).exit_code == 7
    flip(path, records(path)["data/0"][0], 0)
    assert verify(second, **RAM).exit_code == 6


@pytest.mark.parametrize("what", ["a name less", "a name twice", "other shapes"])
def test_flat_parameters_that_are_not_as_recorded_are_compared_whole(what: str, tmp_path: Path) -> None:
    """The shapes are in ``param_shapes``; the flat numbers that they do not speak of are compared too."""

    def made(folder: Path, groups: list[dict[str, torch.Size]], last: float) -> Path:
        folder.mkdir()
        (folder / "latest").write_text("global_step1")
        step = folder / "global_step1"
        step.mkdir()
        states = {"module": {}, "param_shapes": groups, "ds_config": {}, "global_steps": 1}
        torch.save(states, step / "zero_pp_rank_0_mp_rank_00_model_states.pt")
        flat = torch.arange(16.0)
        flat[-1] = last
        torch.save(
            {"optimizer_state_dict": {"zero_stage": 3, "fp32_flat_groups": [flat]}},
            step / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        )
        return folder

    x, y = {"x": torch.Size([2, 4])}, {"y": torch.Size([4, 2])}
    groups = {"a name less": [x], "a name twice": [x, {"x": torch.Size([8])}], "other shapes": [x, y]}[what]
    first = made(tmp_path / "a", groups, 1)
    same = diff(first, made(tmp_path / "b", groups, 1), **RAM)
    # What contradicts the shapes is damaged, and compared as far as it can be read.
    assert (same.exit_code, same.is_equal, same.differs) == (
        (0, True, False) if what == "other shapes" else (6, False, False)
    )
    assert diff(first, made(tmp_path / "c", groups, 2), **RAM).exit_code == 7
    assert inspect(made(tmp_path / "d", groups, math.nan), stats=True, **RAM).exit_code == (
        7 if what == "other shapes" else 6
    )
    if what == "other shapes":
        assert diff(first, made(tmp_path / "e", [x, {"y": torch.Size([2, 4])}], 1), **RAM).exit_code == 7
    (first / "global_step1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    assert verify(first, **RAM).exit_code == 6


def test_nothing_is_no_verdict_of_a_witness_either(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    torch.save({"w": torch.empty(0, 3)}, path)
    with pytest.raises(SourceError, match="nothing to digest"):
        streamconv.digest(path, **RAM)
    found = verify(path, reference="all", **RAM)
    assert (found.exit_code, "nothing was compared" in str(found)) == (3, True)


def test_a_lone_file_is_checked_whatever_its_name_is(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    torch.save({"w": torch.ones(64)}, path)
    whole = verify(path, reference="all", **RAM)
    assert whole.report.checked is not None
    assert (whole.exit_code, whole.report.checked["records"] > 3) == (0, True)
    assert whole.reference is not None
    assert whole.reference.compared == 1
    flip(path, records(path)["data/0"][0], 0)
    assert verify(path, **RAM).exit_code == 6


def test_of_a_hugging_face_folder_the_model_is_what_transformers_reads(tmp_path: Path) -> None:
    """Other files may hold the same names: they do not stand in for the model's, nor count as its parameters."""
    names = {"a": torch.ones(4, 3), "b": torch.zeros(2)}
    save_file({"a": torch.full((4, 3), math.nan), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    torch.save(names, tmp_path / "pytorch_model.bin")
    torch.save({"tokens": torch.ones(7)}, tmp_path / "ref.pt")
    report = inspect(tmp_path, stats=True, **RAM)
    assert report.exit_code == 7
    assert report.model is not None
    assert report.model.parameters == 14
    assert {row.name for row in report.tensors} == {
        "a",
        "b",
        "pytorch_model.bin:a",
        "pytorch_model.bin:b",
        "ref.pt:tokens",
    }


def test_what_is_missing_by_the_names_of_files_is_missing(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save_file({f"w{number}": torch.ones(2)}, tmp_path / f"model-{number:05d}-of-00003.safetensors")
    assert verify(tmp_path, **RAM).exit_code == 0
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    found = verify(tmp_path, **RAM)
    assert [finding.what for finding in found.broken] == ["1 of 3 shards are missing: model-00002-of-00003.safetensors"]
    assert diff(tmp_path, tmp_path, **RAM).exit_code == 6
    alone = tmp_path / "distributed"
    (alone / "step-2").mkdir(parents=True)
    shutil.copy(FRAMEWORKS / "mcore_llama_dist_tp2pp2" / "__0_0.distcp", alone / "step-2")
    assert [finding.what for finding in verify(alone, **RAM).broken] == [
        "there is no .metadata beside the .distcp files, and it says what they hold"
    ]


def test_a_damaged_copy_of_the_source_is_found_though_another_is_compared(tmp_path: Path) -> None:
    source = copied(BLOOM, tmp_path / "src")
    convert(source, tmp_path / "hf", to="huggingface", **RAM)
    path = file_of(source, "layer_08-model_01-model_states.pt")
    flip(path, records(path)["data/0"][0], 3)
    with pytest.raises(DamagedError, match="its CRC-32 is"):
        verify(tmp_path / "hf", source, **RAM)


def test_the_command_line_exits_with_it(tmp_path: Path) -> None:
    first, second = (copied(MOE, tmp_path / name) for name in "ab")
    for root in (first, second):
        cut(file_of(root, EXPERT), 700)
    words = [sys.executable, "-m", "streamconv", "diff", str(first), str(second), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads(json.dumps(comparison_dict(diff(first, second))))
    assert (printed["equal"], printed["not_compared"][0]["exit_code"]) == (False, 6)
