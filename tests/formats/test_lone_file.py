"""A file of tensors by itself: a state dict, or what a trainer saved around one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamconv import DamagedError, Plan, SourceError, StreamconvError, UsageError, plan
from tests.kept import Tensors, assert_same, kept
from tests.stored import counted


def tensors() -> Tensors:
    return {"layers.0.up.weight": counted(3, 4), "layers.0.up.bias": counted(3, start=12), "step": torch.tensor(7)}


def planned(path: Path) -> Plan:
    return plan(path, to="safetensors", max_ram="1G")


def told(found: Plan) -> set[tuple[str, int, str]]:
    """What is left out."""
    return {(each.name, each.nbytes, each.reason) for each in found.dropped}


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin", "x.ckpt", "x.safetensors", "old.pt", "anything"])
def test_a_state_dict_is_taken_whatever_its_file_is_called(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=name != "old.pt")
    assert_same(kept(path, tmp_path / "out"), tensors())


MOMENTS = {"state": {0: {"exp_avg": counted(3, 4), "exp_avg_sq": counted(3, 4)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "model_state", "weights"])
def test_the_entry_that_is_the_model_is_taken_and_the_rest_is_told_of(key: str, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": MOMENTS, key: tensors(), "args": {"lr": 0.1}}, tmp_path / "in.pt")
    found = planned(tmp_path / "in.pt")
    assert ("2 tensors of the entry optimizer", 96, f"beside the entry {key}") in told(found)
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out"), tensors())


def test_of_two_entries_that_may_be_the_model_the_other_one_is_told_of(tmp_path: Path) -> None:
    torch.save({"model": {"a": counted(2), "b": counted(3)}, "state_dict": tensors()}, tmp_path / "in.pt")
    assert ("2 tensors of the entry model", 20, "beside the entry state_dict") in told(planned(tmp_path / "in.pt"))
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out"), tensors())


@pytest.mark.parametrize("beside", [{"rng": counted(5, dtype=torch.uint8)}, {"loss": torch.tensor(0.25)}])
def test_a_tensor_beside_the_entries_is_no_model(beside: Tensors, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": tensors(), "optimizer": MOMENTS, **beside}, tmp_path / "in.pt")
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out"), tensors())


def test_a_model_that_is_called_as_an_entry_is_taken_whole(tmp_path: Path) -> None:
    """A state dict has no entries around it: all its tensors are the model's."""
    whole = {"weights": counted(3), "model.a": counted(2), "state_dict": counted(4)}
    torch.save(whole, tmp_path / "in.pt")
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out"), whole)


def test_a_dictionary_of_dictionaries_is_flattened_with_dots(tmp_path: Path) -> None:
    nested = {"up": counted(3), "list": [counted(2), counted(2, start=2)]}
    torch.save({"encoder": nested, "head": counted(4)}, tmp_path / "in.pt")
    found = kept(tmp_path / "in.pt", tmp_path / "out")
    wanted = {"encoder.up": counted(3), "encoder.list.0": counted(2), "encoder.list.1": counted(2, start=2)}
    assert_same(found, {**wanted, "head": counted(4)})


def test_two_tensors_of_one_dotted_name_are_refused(tmp_path: Path) -> None:
    torch.save({"a": {"b": counted(2)}, "a.b": counted(3)}, tmp_path / "in.pt")
    with pytest.raises(DamagedError, match=r"two tensors are named a\.b"):
        planned(tmp_path / "in.pt")


def test_a_tensor_by_itself_has_a_name_or_is_refused(tmp_path: Path) -> None:
    torch.save(counted(3), tmp_path / "in.pt")
    try:
        found = kept(tmp_path / "in.pt", tmp_path / "out")
    except StreamconvError:
        return
    assert all(found)


@pytest.mark.parametrize("state", [{}, {"epoch": 3}, [], {"model": {}, "args": {"lr": 1}}])
def test_a_file_without_a_tensor_is_refused(state: Any, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(SourceError, match="no tensor in the file") as caught:
        planned(tmp_path / "in.pt")
    assert caught.value.where == str(tmp_path / "in.pt")


@pytest.mark.parametrize("data", [b"", b"text\n", b"\x00" * 100, b"PK\x03\x04 no zip"])
def test_a_file_of_something_else_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.pt").write_bytes(data)
    with pytest.raises(StreamconvError) as caught:
        planned(tmp_path / "in.pt")
    assert caught.value.where == str(tmp_path / "in.pt")


def test_what_lies_beside_the_file_goes_along_with_it(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "in.pt")
    (tmp_path / "tokenizer.json").write_text("words")
    kept(tmp_path / "in.pt", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "words"


@pytest.mark.parametrize("option", [{"tag": "x"}, {"weights": "master"}])
def test_options_about_runs_have_no_meaning_for_a_file(option: Any, tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "in.pt")
    with pytest.raises(UsageError):
        plan(tmp_path / "in.pt", to="safetensors", max_ram="1G", **option)
