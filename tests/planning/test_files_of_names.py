"""Targets that keep names: their files, what goes along with the model, and where they may go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from streamconv import DestinationError, convert, plan
from tests.kept import TARGETS, assert_same, kept, model
from tests.making.zero import write_run
from tests.stored import counted
from tests.trees import tree


@pytest.mark.parametrize(("to", "whole"), [("safetensors", "model.safetensors"), ("pytorch-bin", "pytorch_model.bin")])
def test_shards_have_the_names_and_the_index_that_transformers_reads(to: str, whole: str, tmp_path: Path) -> None:
    tensors = model(tmp_path / "in", model_type="unheard-of")
    assert_same(kept(tmp_path / "in", tmp_path / "out", to, max_shard_size=250), tensors)
    stem, suffix = whole.split(".")
    names = [f"{stem}-{number:05d}-of-00005.{suffix}" for number in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / "out").glob(f"*.{suffix}")) == names
    index = json.loads((tmp_path / "out" / f"{whole}.index.json").read_text())
    assert index["metadata"] == {"total_size": 9 * 96}
    assert index["weight_map"].keys() == tensors.keys()
    for name in names:
        path = tmp_path / "out" / name
        there = load_file(path) if to == "safetensors" else torch.load(path, weights_only=True)
        assert [each for each, file in index["weight_map"].items() if file == name] == sorted(there)
        assert sum(tensor.nbytes for tensor in there.values()) <= 250


@pytest.mark.parametrize("to", TARGETS)
def test_one_file_has_no_index_if_a_configuration_is_the_record(to: str, tmp_path: Path) -> None:
    model(tmp_path / "in", model_type="unheard-of")
    kept(tmp_path / "in", tmp_path / "out", to)
    assert not list((tmp_path / "out").glob("*.index.json"))


def test_a_tensor_larger_than_a_shard_is_a_shard_by_itself(tmp_path: Path) -> None:
    tensors = {"a": counted(2), "large": counted(100, start=2), "b": counted(2, start=102), "none": torch.empty(0)}
    torch.save(tensors, tmp_path / "in.pt")
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out", max_shard_size=100), tensors)
    files = [list(load_file(path)) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert [sorted(names) for names in files] == [["a"], ["large"], ["b", "none"]]


def test_safetensors_say_what_transformers_asks_for(tmp_path: Path) -> None:
    model(tmp_path / "in")
    kept(tmp_path / "in", tmp_path / "out")
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_the_configuration_is_the_sources_byte_for_byte_if_nothing_changes(tmp_path: Path) -> None:
    model(tmp_path / "in")
    text = '{"torch_dtype":\n\t"float32",   "model_type": "unheard-of", "\\u00e9": [1e5, null]}'
    (tmp_path / "in" / "config.json").write_text(text)
    kept(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == text


@pytest.mark.parametrize("entry", ["torch_dtype", "dtype"])
def test_the_configurations_dtype_is_that_of_the_result(entry: str, tmp_path: Path) -> None:
    model(tmp_path / "in", model_type="unheard-of", size=7, **{entry: "float32"})
    kept(tmp_path / "in", tmp_path / "out", dtype="bf16")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {"model_type": "unheard-of", "size": 7, entry: "bfloat16"}


def test_the_configuration_may_be_given(tmp_path: Path) -> None:
    tensors = model(tmp_path / "in")
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"model_type": "unheard-of", "size": 7}))
    assert_same(kept(tmp_path / "in", tmp_path / "out", config=given), tensors)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {"model_type": "unheard-of", "size": 7, "dtype": "float32"}


def test_without_a_configuration_the_result_says_so_and_has_an_index(tmp_path: Path) -> None:
    model(tmp_path / "in")
    found = plan(tmp_path / "in", to="safetensors", max_ram="1G")
    assert "no config.json (none is at hand): nothing in the result says what model it is" in found.warnings
    tensors = kept(tmp_path / "in", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict.fromkeys(tensors, "model.safetensors")
    assert not (tmp_path / "out" / "config.json").exists()


def test_what_goes_along_with_a_model_is_copied_and_nothing_else(tmp_path: Path) -> None:
    model(tmp_path / "in", model_type="unheard-of")
    along = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json",
             "preprocessor_config.json", "processor_config.json", "generation_config.json"]  # fmt: skip
    for number, name in enumerate([*along, "modeling_own.py", "README.md", "training_args.bin", "tokenizer.py"]):
        (tmp_path / "in" / name).write_bytes(b"\x00\xff{%d}" % number if "config" not in name else b"{}")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    assert_same(kept(tmp_path / "in", tmp_path / "out"), tensors)
    there = tree(tmp_path / "out")
    assert there.keys() == {*along, "config.json", "model.safetensors", "streamconv.json"}
    assert all(there[name] == (tmp_path / "in" / name).read_bytes() for name in along)


def test_a_tokenizer_may_come_from_elsewhere(tmp_path: Path) -> None:
    model(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text("own")
    (tmp_path / "in" / "merges.txt").write_text("own")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("other")
    kept(tmp_path / "in", tmp_path / "out", tokenizer=tmp_path / "words")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "other"
    assert (tmp_path / "out" / "merges.txt").read_text() == "own"


# -- the destination ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "there", ["model.safetensors", "pytorch_model-00001-of-00002.bin", "adapter_model.bin", "latest"]
)
def test_a_destination_with_another_checkpoint_is_refused_and_stays(there: str, tmp_path: Path) -> None:
    model(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / there).write_bytes(b"other")
    with pytest.raises(DestinationError, match=f"the destination holds a checkpoint: {there}"):
        kept(tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "out") == {there: b"other"}


@pytest.mark.parametrize("to", TARGETS)
def test_what_would_be_loaded_in_place_of_the_result_goes_and_the_rest_stays(to: str, tmp_path: Path) -> None:
    tensors = model(tmp_path / "in")
    (tmp_path / "out").mkdir()
    old = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json",
           "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "generation_config.json"]  # fmt: skip
    for name in [*old, "README.md", "optimizer.bin"]:
        (tmp_path / "out" / name).write_bytes(b"old")
    convert(tmp_path / "in", tmp_path / "out", to=to, max_ram="1G", overwrite=True)
    there = tree(tmp_path / "out")
    assert (there.pop("README.md"), there.pop("optimizer.bin")) == (b"old", b"old")
    assert b"old" not in there.values()
    found = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True) if to == "pytorch-bin" else {}
    assert_same(found or load_file(tmp_path / "out" / "model.safetensors"), tensors)


@pytest.mark.parametrize("inside", [".", "global_step3", "below"])
def test_the_folder_of_the_source_is_never_written(inside: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    before = tree(tmp_path / "run")
    with pytest.raises(DestinationError):
        kept(tmp_path / "run", tmp_path / "run" / inside, overwrite=True)
    assert tree(tmp_path / "run") == before


def test_a_lone_file_may_become_a_model_in_its_own_folder_but_is_never_replaced(tmp_path: Path) -> None:
    torch.save({"w": counted(3)}, tmp_path / "lone.pt")
    torch.save({"w": counted(3)}, tmp_path / "pytorch_model.bin")
    before = (tmp_path / "pytorch_model.bin").read_bytes()
    with pytest.raises(DestinationError):
        kept(tmp_path / "pytorch_model.bin", tmp_path, "pytorch-bin", overwrite=True)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == before


def test_the_same_conversion_again_finds_its_result_done(tmp_path: Path) -> None:
    model(tmp_path / "in")
    kept(tmp_path / "in", tmp_path / "out", tensors="layers.0.*")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    kept(tmp_path / "in", tmp_path / "out", tensors="layers.0.*")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(DestinationError):
        kept(tmp_path / "in", tmp_path / "out", tensors="layers.1.*")
