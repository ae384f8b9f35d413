"""A verdict speaks of what was looked at: the rest is compared too, or named, and never called equal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import streamconv
from streamconv import convert, diff, verify
from streamconv.report.differences import comparison_dict
from streamconv.verification.comparison import Comparison
from tests.damage import cut, set_tensor
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
    assert (same.exit_code, same.is_equal, same.not_compared) == (0, True, [])
    assert "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt:lm_head.weight" in same.a.tensors
    for path in other.rglob("*_optim_states.pt"):
        add(path, "optimizer_state_dict.fp32_flat_groups.0", 1)
    found = diff(ZERO3, other, **RAM)
    assert (found.exit_code, found.is_equal) == (7, False)
    assert {name for name in same.a.tensors if "optim_states.pt:" in name and ":optimizer" not in name} == {
        each.name for each in found.values
    }
    assert all(each.elements == each.numel and each.max_abs == pytest.approx(1) for each in found.values)
    assert verify(other, ZERO3, **RAM).exit_code == 7


def test_a_changed_expert_is_found(tmp_path: Path) -> None:
    other = copied(MOE, tmp_path / "other")
    assert diff(MOE, other, **RAM).is_equal
    name = "layers.1.mlp.deepspeed_moe.experts.deepspeed_experts.2.dense_h_to_4h.bias"
    add(file_of(other, EXPERT), name, 0.5)
    found = diff(MOE, other, **RAM)
    assert ([each.name for each in found.values], found.exit_code) == ([f"{EXPERT}:{name}"], 7)


def test_an_expert_that_is_gone_is_found(tmp_path: Path) -> None:
    other = copied(MOE, tmp_path / "other")
    file_of(other, EXPERT).unlink()
    found = diff(MOE, other, **RAM)
    assert (found.exit_code, {name.partition(":")[0] for name in found.only_a}) == (7, {EXPERT})
    assert verify(other, MOE, **RAM).exit_code == 6
    gone = diff(other, copied(other, tmp_path / "again"), **RAM)
    assert (gone.exit_code, gone.is_equal, not_compared(gone)) == (6, False, [("global_step2", 6)] * 2)


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
    assert (everything.exit_code, everything.only_b) == (7, ["extra.pt"])
    assert [each.name for each in everything.values] == ["mp_rank_00_model_states.pt:optimizer.state.0.exp_avg"]
    assert diff(BLOOM, BLOOM, everything=True, **RAM).is_equal


def test_a_conversion_verifies_and_says_what_was_left_out(tmp_path: Path) -> None:
    convert(BLOOM, tmp_path / "hf", to="huggingface", **RAM)
    found = verify(tmp_path / "hf", BLOOM, **RAM)
    assert found.comparison is not None
    assert (found.exit_code, found.comparison.is_faithful) == (0, True)
    assert {each.exit_code for each in found.comparison.not_compared} == {0}


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
