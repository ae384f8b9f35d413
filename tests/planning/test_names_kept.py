"""Targets that keep names: every tensor, whole and under its name, as the libraries that own the containers read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import UnsupportedError, UsageError, plan, verify
from tests import oracle
from tests.kept import TARGETS, Tensors, assert_same, bits, kept, model
from tests.making.zero import Run, write_run
from tests.places import LABELLED, REAL, Source
from tests.stored import counted
from tests.trees import tree

MEGATRON = next(source for source in REAL if source.name == "dsp_gpt_nopipe_tp2_fp32_z0")


def views() -> Tensors:
    """Tensors that overlap in one storage, in every way that torch has."""
    base = counted(4, 6)
    return {
        "rows": base[1:3],
        "turned": base.t(),
        "column": base[:, 2],
        "run": base.view(-1)[3:20],
        "every second": base[::2, 1::2],
        "again and again": base[:1].expand(3, 6),
        "one": base[2, 3],
        "none": base[2:2],
        "whole": base,
    }


@pytest.mark.parametrize("to", TARGETS)
def test_overlapping_views_of_one_storage_are_each_whole(to: str, tmp_path: Path) -> None:
    torch.save(views(), tmp_path / "in.pt")
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out", to), views())


@pytest.mark.parametrize("skipped", list(views()))
def test_a_view_may_be_left_out_whatever_it_overlaps(skipped: str, tmp_path: Path) -> None:
    torch.save(views(), tmp_path / "in.pt")
    wanted = {name: tensor for name, tensor in views().items() if name != skipped}
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out", skip=skipped), wanted)
    assert_same(kept(tmp_path / "in.pt", tmp_path / "only", tensors=skipped), {skipped: views()[skipped]})


@pytest.mark.parametrize("to", TARGETS)
def test_every_dtype_is_kept_and_a_cast_is_of_floating_tensors_alone(to: str, tmp_path: Path) -> None:
    whole = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
    floating = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    tensors = {str(dtype): counted(3, 5, start=number, dtype=dtype) for number, dtype in enumerate([*whole, *floating])}
    tensors |= {"truth": counted(7) % 3 == 0, "step": torch.tensor(2**40), "scale": torch.tensor(0.1)}
    tensors |= {"none": torch.empty(0, 3), "also none": torch.empty(2, 0, dtype=torch.int64), "one": torch.ones(1, 1)}
    torch.save(tensors, tmp_path / "in.pt")
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out", to), tensors)
    cast = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    assert_same(kept(tmp_path / "in.pt", tmp_path / "cast", to, dtype="fp16"), cast)


def test_float8_goes_to_safetensors_and_is_refused_where_torch_files_have_none(tmp_path: Path) -> None:
    tensors = {"a": counted(4).to(torch.float8_e4m3fn), "b": counted(4).to(torch.float8_e5m2)}
    torch.save(tensors, tmp_path / "in.pt")
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out"), tensors)
    with pytest.raises(UnsupportedError, match="float8_e4m3fn: torch's files are not written"):
        kept(tmp_path / "in.pt", tmp_path / "bin", "pytorch-bin")
    assert not (tmp_path / "bin").exists() or tree(tmp_path / "bin") == {}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_dtype_is_reached_by_one_rounding_to_the_nearest_even(dtype: str, tmp_path: Path) -> None:
    """Around every middle between two numbers of 16 bits: below, at, and above it."""
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    steps = torch.arange(0x3C00, 0x3C40, dtype=torch.int16).view(narrow).float()
    middles = (steps[1:] + steps[:-1]) / 2
    near = torch.cat([torch.nextafter(middles, middles - 1), middles, torch.nextafter(middles, middles + 1)])
    torch.save({"w": torch.cat([near, -near])}, tmp_path / "in.pt")
    found = kept(tmp_path / "in.pt", tmp_path / "out", dtype=dtype)["w"].view(torch.int16) & 0x7FFF
    below, at, above = found.view(2, 3, -1)[0]
    places = torch.arange(0x3C00, 0x3C3F, dtype=torch.int16)
    assert torch.equal(below, places)
    assert torch.equal(above, places + 1)
    assert torch.equal(at, places + places % 2)
    assert torch.equal(found.view(2, -1)[0], found.view(2, -1)[1])


def test_what_shares_a_parameter_shares_its_bytes_in_a_torch_file_and_is_written_again_as_safetensors(
    tmp_path: Path,
) -> None:
    truth = write_run(tmp_path / "run", Run(stage=2))
    found = kept(tmp_path / "run", tmp_path / "bin", "pytorch-bin", weights="master")
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert torch.equal(found["head.weight"], truth.trained["embed.weight"])
    others = {name: tensor.data_ptr() for name, tensor in found.items() if name != "head.weight" and tensor.numel()}
    assert len(set(others.values())) == len(others)
    again = kept(tmp_path / "run", tmp_path / "out", weights="master")
    assert torch.equal(again["head.weight"], truth.trained["embed.weight"])


def test_names_that_share_a_parameter_are_in_one_file_of_several(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2))
    kept(tmp_path / "run", tmp_path / "bin", "pytorch-bin", max_shard_size=60)
    index = json.loads((tmp_path / "bin" / "pytorch_model.bin.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 3
    assert index["head.weight"] == index["embed.weight"]


def test_a_torch_file_has_the_order_of_the_model(tmp_path: Path) -> None:
    tensors = {name: counted(2) for name in ("z", "layers.10.w", "layers.2.w", "a")}
    torch.save(tensors, tmp_path / "in.pt")
    assert list(kept(tmp_path / "in.pt", tmp_path / "out", "pytorch-bin")) == list(tensors)


# -- which, and how they are called ------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", TARGETS)
def test_some_tensors_are_taken_under_other_names(to: str, tmp_path: Path) -> None:
    tensors = model(tmp_path / "in")
    how: dict[str, Any] = {"tensors": ["layers.0.*", "layers.2.*"], "skip": "*.norm"}
    found = kept(
        tmp_path / "in", tmp_path / "out", to, **how, rename={"layers.*.up": "h.*.fc", "layers.2.down": "last"}
    )
    wanted = {
        "h.0.fc": "layers.0.up",
        "layers.0.down": "layers.0.down",
        "h.2.fc": "layers.2.up",
        "last": "layers.2.down",
    }
    assert_same(found, {new: tensors[name] for new, name in wanted.items()})


def test_what_is_left_out_is_told_with_its_bytes_and_the_flag(tmp_path: Path) -> None:
    model(tmp_path / "in")
    how: dict[str, Any] = {"to": "safetensors", "max_ram": "1G", "tensors": ["layers.0.*"], "skip": ["*.norm"]}
    told = {(each.name, each.nbytes, each.reason) for each in plan(tmp_path / "in", **how).dropped}
    assert told == {
        ("6 tensors (layers.1.down, layers.1.norm, layers.1.up ..)", 6 * 96, "--tensors says so"),
        ("1 tensors (layers.0.norm)", 96, "--skip says so"),
    }


def test_a_name_without_wrappers_is_the_one_that_patterns_are_about(tmp_path: Path) -> None:
    torch.save({"module.a.weight": counted(3), "module.b.weight": counted(3, start=3)}, tmp_path / "in.pt")
    found = kept(tmp_path / "in.pt", tmp_path / "out", tensors="b.*", rename={"b.weight": "module.weight"})
    assert_same(found, {"module.weight": counted(3, start=3)})
    with pytest.raises(UsageError, match=r"tensors module\.b\.\*: none of 2 tensors"):
        plan(tmp_path / "in.pt", to="safetensors", max_ram="1G", tensors="module.b.*")


def test_of_a_shared_parameter_either_name_may_be_taken_alone(tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=3, dp=3))
    for name, other in (("head.weight", "embed.weight"), ("embed.weight", "head.weight")):
        found = kept(tmp_path / "run", tmp_path / f"no-{other}", "pytorch-bin", skip=other)
        assert other not in found
        assert torch.equal(found[name], truth.trained["embed.weight"])


@pytest.mark.parametrize("option", ["tensors", "skip", "rename"])
def test_targets_that_translate_take_no_patterns(option: str) -> None:
    how: dict[str, Any] = {option: {"*": "x.*"} if option == "rename" else "*", "max_ram": "1G"}
    with pytest.raises(UsageError, match=option):
        plan(MEGATRON.folder, **how)


# -- ranks that hold shards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [MEGATRON, REAL[1], LABELLED[1], LABELLED[6]], ids=lambda source: source.name)
def test_shards_of_a_training_checkpoint_are_joined_under_canonical_names(source: Source, tmp_path: Path) -> None:
    """Rows of query_key_value as one rank has them; whatever the vocabulary is padded with stays."""
    found = kept(source.folder, tmp_path / "out")
    wanted = oracle.model_of(source)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        fused = "query_key_value" in name
        whole = oracle.by_head_from_blocks([found[name]], source.heads) if fused and source.blocks else found[name]
        mine = oracle.by_head(whole, source.heads) if fused and not source.blocks else whole
        assert (mine.shape, mine.dtype) == (tensor.shape, tensor.dtype), name
        assert torch.equal(bits(mine), bits(tensor)), name


def test_part_of_a_training_checkpoint_may_be_taken(tmp_path: Path) -> None:
    found = kept(MEGATRON.folder, tmp_path / "out", "pytorch-bin", tensors="layers.1.mlp.*", dtype="bf16")
    wanted = {n: t for n, t in oracle.model_of(MEGATRON).items() if n.startswith("layers.1.mlp.")}
    assert_same(found, {name: tensor.bfloat16() for name, tensor in wanted.items()})


def test_the_result_is_verified_against_its_source(tmp_path: Path) -> None:
    kept(MEGATRON.folder, tmp_path / "out", dtype="bf16")
    found = verify(tmp_path / "out", against=MEGATRON.folder, max_ram="1G")
    assert found.exit_code == 0
    assert found.comparison is not None
    assert found.comparison.compared == len(oracle.model_of(MEGATRON))
