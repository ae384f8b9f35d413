"""``extract``: one tensor, whole, in a file that numpy or safetensors reads; or nothing at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from streamconv import (
    DamagedError,
    DestinationError,
    Extracted,
    SourceError,
    StreamconvError,
    UnsupportedError,
    UsageError,
    extract,
)
from tests import oracle
from tests.damage import flip, records
from tests.kept import bits
from tests.making.zero import Run, write_run
from tests.making.zero_values import ODD
from tests.places import FIXTURES, FRAMEWORKS, REAL
from tests.stored import counted
from tests.trees import tree

MEGATRON = next(source for source in REAL if source.name == "dsp_gpt_nopipe_tp2_fp32_z0")


def taken(src: Path, name: str, out: Path, **options: Any) -> torch.Tensor:
    """The tensor, as its container's own library reads it."""
    found = extract(src, name, out, max_ram="1G", **options)
    assert found.nbytes == out.stat().st_size
    assert (found.path, found.source, found.name) == (str(out), str(src), name)
    if out.suffix == ".npy":
        return torch.from_numpy(np.load(out))
    (tensor,) = load_file(out).values()
    return tensor


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(bits(found), bits(wanted))


# -- what is written ---------------------------------------------------------------------------------------------------

OF_ANY_KIND = {
    "matrix": counted(5, 7),
    "turned": counted(5, 7).t(),
    "cube": counted(3, 4, 5).half(),
    "long": counted(6, dtype=torch.int64),
    "bytes": counted(6, dtype=torch.uint8),
    "truth": counted(6) % 2 == 0,
    "double": counted(2, 3, dtype=torch.float64) / 3,
    "number": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
}


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("name", list(OF_ANY_KIND))
def test_a_tensor_of_any_kind_comes_out_bit_for_bit(name: str, suffix: str, tmp_path: Path) -> None:
    torch.save(OF_ANY_KIND, tmp_path / "in.pt")
    assert_same(taken(tmp_path / "in.pt", name, tmp_path / f"out{suffix}"), OF_ANY_KIND[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", f"out{suffix}"]


def test_the_file_of_numpy_is_the_one_that_numpy_writes(tmp_path: Path) -> None:
    torch.save(OF_ANY_KIND, tmp_path / "in.pt")
    for name, tensor in OF_ANY_KIND.items():
        taken(tmp_path / "in.pt", name, tmp_path / f"{name}.npy")
        with (tmp_path / "theirs.npy").open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape), version=(1, 0))
        assert (tmp_path / f"{name}.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes(), name


def test_a_safetensors_file_has_the_name_that_was_asked_for(tmp_path: Path) -> None:
    torch.save({"module.a.weight": counted(3)}, tmp_path / "in.pt")
    for number, name in enumerate(("a.weight", "module.a.weight")):
        taken(tmp_path / "in.pt", name, tmp_path / f"{number}.safetensors")
        with safe_open(str(tmp_path / f"{number}.safetensors"), "pt") as file:
            assert list(file.keys()) == [name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_numpy_has_no_type_for_goes_to_safetensors_or_is_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = counted(3, 5).to(dtype)
    save_file({"w": tensor}, tmp_path / "in.safetensors")
    assert_same(taken(tmp_path / "in.safetensors", "w", tmp_path / "out.safetensors"), tensor)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError, match=re.escape(f".npy has no {kind}")) as caught:
        taken(tmp_path / "in.safetensors", "w", tmp_path / "out.npy")
    assert caught.value.remedy == 'say dtype="fp32", which holds every value of it, or write .safetensors'
    assert not (tmp_path / "out.npy").exists()
    assert_same(taken(tmp_path / "in.safetensors", "w", tmp_path / "out.npy", dtype="fp32"), tensor.float())


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_a_cast_rounds_once_and_is_of_floating_tensors_alone(dtype: str, tmp_path: Path) -> None:
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    tensors = {"w": (counted(5, 7) + 1) / 3, "n": counted(4, dtype=torch.int32)}
    torch.save(tensors, tmp_path / "in.pt")
    found = taken(tmp_path / "in.pt", "w", tmp_path / "w.safetensors", dtype=dtype)
    assert_same(found, tensors["w"].to(wanted))
    assert_same(taken(tmp_path / "in.pt", "n", tmp_path / "n.safetensors", dtype=dtype), tensors["n"])


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["embed.weight", "deep.weight", "b.bias", "point", "head.weight", "frozen.weight"])
def test_a_tensor_that_ranks_hold_parts_of_is_whole(name: str, stage: int, tmp_path: Path) -> None:
    """Five ranks, whose ends are inside rows; the tied head has its parameter's master."""
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=5), ODD)
    found = taken(tmp_path / "run", name, tmp_path / "out.safetensors", weights="master")
    wanted = truth.master()[name]
    assert_same(found, wanted.to(found.dtype) if name == "frozen.weight" else wanted)


def test_a_tensor_that_ranks_hold_rows_or_columns_of_is_whole(tmp_path: Path) -> None:
    whole = oracle.model_of(MEGATRON)
    for name in ("word_embeddings.weight", "layers.1.mlp.dense_4h_to_h.weight", "layers.2.mlp.dense_h_to_4h.weight"):
        assert_same(taken(MEGATRON.folder, name, tmp_path / f"{name}.npy"), whole[name])
    fused = "layers.3.self_attention.query_key_value.weight"
    assert_same(oracle.by_head(taken(MEGATRON.folder, fused, tmp_path / "qkv.npy")), whole[fused])


def test_a_tensor_larger_than_every_buffer_is_whole(tmp_path: Path) -> None:
    """In bands of rows: 20 MiB, gathered from a transposed matrix."""
    tensor = torch.arange(5 << 20, dtype=torch.int32).view(1 << 10, -1).t()
    torch.save({"w": tensor}, tmp_path / "in.pt")
    assert_same(taken(tmp_path / "in.pt", "w", tmp_path / "out.npy", jobs=2), tensor)


def test_the_result_describes_itself(tmp_path: Path) -> None:
    torch.save({"w": counted(5, 7)}, tmp_path / "in.pt")
    seen: list[tuple[int, int]] = []
    found = extract(tmp_path / "in.pt", "w", tmp_path / "w.npy", max_ram="1G", progress=lambda *at: seen.append(at))
    assert isinstance(found, Extracted)
    assert (found.dtype, found.shape) == ("float32", (5, 7))
    assert found.to_dict()["nbytes"] == (tmp_path / "w.npy").stat().st_size
    assert str(tmp_path / "w.npy") in str(found)
    assert seen[-1] == (140, 140)


# -- what is refused, and leaves nothing -------------------------------------------------------------------------------


def refused(folder: Path, kind: type[StreamconvError], words: str, src: Path, name: str, out: Path, **how: Any) -> str:
    """Nothing has changed below ``folder``; the remedy."""
    before = tree(folder)
    with pytest.raises(StreamconvError, match=re.escape(words)) as caught:
        extract(src, name, out, max_ram="1G", **how)
    assert type(caught.value) is kind
    assert tree(folder) == before
    return caught.value.remedy or ""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({"layers.0.weight": counted(5, 7), "layers.0.bias": counted(5)}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


def test_a_name_that_is_not_there_is_refused_with_one_that_is_near(source: Path, tmp_path: Path) -> None:
    words = "layers.0.wieght: none of 2 tensors has this name"
    remedy = refused(tmp_path, UsageError, words, source, "layers.0.wieght", tmp_path / "out.npy")
    assert remedy == "did you mean layers.0.weight?"


@pytest.mark.parametrize("name", ["out.pt", "out", "out.bin", ".npy"])
def test_other_kinds_of_files_are_refused(name: str, source: Path, tmp_path: Path) -> None:
    words = f"{name}: a tensor is written as .npy or .safetensors"
    refused(tmp_path, UsageError, words, source, "layers.0.weight", tmp_path / name)


def test_what_is_in_the_place_stays_unless_it_may_be_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.npy").write_bytes(b"mine")
    (tmp_path / "folder.npy").mkdir()
    refused(tmp_path, DestinationError, "something is there", source, "layers.0.bias", tmp_path / "out.npy")
    for overwrite in (False, True):
        how = (tmp_path, DestinationError, "something is there", source, "layers.0.bias", tmp_path / "folder.npy")
        assert refused(*how, overwrite=overwrite) == "choose another place"
    assert_same(taken(source, "layers.0.bias", tmp_path / "out.npy", overwrite=True), counted(5))


def test_no_folder_is_made(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "not" / "there" / "out.npy"
    assert refused(tmp_path, DestinationError, "is not there", source, "layers.0.bias", out) == "make it"


def test_a_source_that_is_not_there_or_is_none_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, SourceError, "no such file or folder", tmp_path / "gone", "w", tmp_path / "out.npy")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, SourceError, "an empty folder", tmp_path / "empty", "w", tmp_path / "out.npy")


def test_placeholders_have_no_elements_to_extract(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({name: torch.empty(0) for name in "abc"}, tmp_path / "in" / "model.safetensors")
    refused(tmp_path, UnsupportedError, "have no elements", tmp_path / "in", "a", tmp_path / "out.npy")


def test_an_option_about_another_kind_of_source_is_refused(source: Path, tmp_path: Path) -> None:
    refused(tmp_path, UsageError, "tag", source, "layers.0.bias", tmp_path / "out.npy", tag="global_step3")


@pytest.mark.parametrize("there", [False, True])
def test_a_damaged_record_leaves_the_place_as_it_was(there: bool, source: Path, tmp_path: Path) -> None:
    """It is known at the end, when all is written; what was there before is still there."""
    start = records(source)["data/0"][0]
    flip(source, start + 17, 3)
    if there:
        (tmp_path / "out.npy").write_bytes(b"mine")
    words, out = "CRC-32", tmp_path / "out.npy"
    refused(tmp_path, DamagedError, words, source, "layers.0.weight", out, overwrite=there)
    assert_same(taken(source, "layers.0.bias", tmp_path / "bias.npy"), counted(5))


@pytest.mark.parametrize("dead", ["bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"])
def test_a_run_that_lacks_a_rank_is_refused(dead: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2))
    (tmp_path / "run" / "global_step3" / dead).unlink()
    before = tree(tmp_path)
    with pytest.raises(StreamconvError):
        extract(tmp_path / "run", "embed.weight", tmp_path / "out.npy", weights="master", max_ram="1G")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("inside", [True, False], ids=["its-file", "the-file-itself"])
def test_the_source_is_never_written(inside: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "model.safetensors"
    save_file({"a": counted(3), "b": counted(4)}, file)
    before = file.read_bytes()
    with pytest.raises(StreamconvError):
        extract(tmp_path / "in" if inside else file, "a", file, max_ram="1G", overwrite=True)
    assert file.read_bytes() == before


TRAINER = FRAMEWORKS / "ds_trainer_llama_z2" / "checkpoint-2"


def test_of_a_trainers_folder_the_model_is_meant(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    saved = load_file(TRAINER / "model.safetensors")
    assert_same(taken(TRAINER, name, tmp_path / "model.safetensors"), saved[name])


def test_of_a_trainers_folder_the_masters_are_taken_on_demand(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    master = taken(TRAINER, name, tmp_path / "master.npy", weights="master")
    truth = torch.load(FIXTURES / "zero_truth" / "ds_trainer_llama_z2.pt", weights_only=True)
    assert_same(master, truth[name]["fp32"])
