"""--stats over whole checkpoints: the model's values as torch has them, what is broken flagged, drift named."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import streamconv
from tests import oracle
from tests.damage import set_tensor
from tests.inspection.samples import BLOOM, LLAMA, changed, copied, look, step_of, words_of
from tests.places import FRAMEWORKS, LABELLED, MADE, REAL, Source
from tests.values.test_statistics import assert_equal, expected

DEEP = MADE / "bloom_L7_tp2pp3_embpart_z0"


@pytest.mark.parametrize("source", [*REAL, LABELLED[1], LABELLED[4]], ids=lambda source: source.name)
def test_the_model_is_measured_over_all_ranks(source: Source) -> None:
    report = look(source.folder, stats=True)
    whole = oracle.source_model(source.folder, source.heads, blocks=source.blocks)
    assert report.statistics is not None
    names = {row.name for row in report.statistics}
    assert len(names) == len(report.statistics)
    assert names == {name.replace("final_norm.", "final_layernorm.") for name in whole}
    for row in report.statistics:
        assert_equal(row.values, expected(whole[row.name]))
        assert math.prod(row.shape) == whole[row.name].numel()
        assert row.dtype == str(whole[row.name].dtype).removeprefix("torch.")
        assert row.name.startswith(f"layers.{row.layer}.") == (row.layer is not None)
    assert not [f for f in report.findings if f.exit_code == 7 and "drifted" not in f.what]


BROKEN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "zeros": (lambda t: torch.zeros_like(t), "all zeros, unlike the other layers"),
    "nan": (lambda t: torch.where(torch.arange(t.numel()).reshape(t.shape) == 3, torch.nan, t), "1 NaN"),
    "inf": (lambda t: torch.where(torch.arange(t.numel()).reshape(t.shape) == 3, torch.inf, t), "1 infinite"),
    "large": (lambda t: t * 100, "times the median of its like"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("source", [BLOOM, LLAMA])
def test_a_broken_layer_is_flagged_and_no_other(kind: str, source: Path, tmp_path: Path) -> None:
    root = copied(source, tmp_path)
    # The third of four layers; what is cut for tensor parallelism is broken on one rank or on both.
    number, key = 5 if source == BLOOM else 4, "mlp.dense_h_to_4h.weight"
    change, words = BROKEN[kind]
    for rank in (0,) if kind in ("nan", "inf") else (0, 1):
        path = step_of(root) / f"layer_{number:02d}-model_{rank:02d}-model_states.pt"
        changed(path, **{key.replace(".", "__"): change(torch.load(path, weights_only=True)[key])})
    report = look(root, stats=True)
    flagged = {row.name: row.flags for row in report.statistics or () if row.flags}
    assert list(flagged) == [f"layers.2.{key}"]
    assert words in " ".join(flagged[f"layers.2.{key}"])
    (finding,) = [f for f in report.findings if f.exit_code == 7]
    assert finding.what.startswith(f"layers.2.{key}: ")
    assert f"layer_{number:02d}-model_00-model_states.pt" in str(finding.where)
    assert report.exit_code == 7
    assert look(root).exit_code == 0


def test_drifted_replicas_name_parameter_rank_and_file(tmp_path: Path) -> None:
    root = copied(DEEP, tmp_path)
    paths = sorted(p for p in step_of(root).glob("layer_*-model_01-*") if "input_layernorm.bias" in torch.load(p))
    path = paths[3]
    bias = torch.load(path, weights_only=True)["input_layernorm.bias"]
    other = bias.clone()
    other[2] += 16
    changed(path, input_layernorm__bias=other)
    report = look(root, stats=True)
    (finding,) = [f for f in report.findings if "drifted" in f.what]
    assert finding.what.startswith(
        "layers.3.input_layernorm.bias has drifted: rank 1 differs from rank 0 in 1 elements"
    )
    assert "by at most 16" in finding.what
    assert finding.where == str(path)
    assert report.exit_code == 7
    assert not look(DEEP, stats=True).findings


def test_the_real_drift_of_bloom_is_found() -> None:
    report = look(BLOOM, stats=True)
    ranks = [torch.load(step_of(BLOOM) / f"layer_03-model_0{r}-model_states.pt", weights_only=True) for r in (0, 1)]
    norms = [name for name in ranks[0] if "layernorm" in name or name.endswith(("dense.bias", "4h_to_h.bias"))]
    drifted = {name for name in norms if not torch.equal(ranks[0][name], ranks[1][name])}
    found = words_of(report)
    for name in norms:
        assert (f"layers.0.{name} has drifted" in found) == (name in drifted)


def test_a_pattern_leaves_the_rest_unread(tmp_path: Path) -> None:
    root = copied(BLOOM, tmp_path)
    report = look(root, stats=True, tensors="layers.1.mlp.*")
    names = {name for name in oracle.source_model(BLOOM) if name.startswith("layers.1.mlp.")}
    assert {row.name for row in report.tensors} == names
    assert {row.name for row in report.statistics or ()} == names
    assert look(root, tensors="nothing*").tensors == []


def zero3(folder: Path, value: float | None) -> Path:
    """A ZeRO-3 checkpoint; with a value, all its parameters are set to it, which only optimizer files hold."""
    shutil.copytree(FRAMEWORKS / "z3_bf16_frozen", folder)
    for path in folder.rglob("*_optim_states.pt") if value is not None else ():
        name = "optimizer_state_dict.fp32_flat_groups.0"
        set_tensor(path, name, torch.full(streamconv.open_checkpoint(path)[name].shape, value))
    return folder


def test_flat_parameters_of_zero_3_are_measured(tmp_path: Path) -> None:
    root = zero3(tmp_path / "whole", None)
    truth = oracle.load_stubbed(next(root.rglob("zero_pp_rank_0*model_states.pt")))["param_shapes"]
    sizes = {name: shape.numel() for group in truth for name, shape in group.items()}
    report = look(root, stats=True)
    found = {row.name: row.values.numel for row in report.statistics or () if row.name in sizes}
    assert found == sizes  # each element once, and no padding, which holds anything
    assert not any(row.values.nan or row.values.inf for row in report.statistics or ())


def test_flat_parameters_that_are_broken_are_flagged(tmp_path: Path) -> None:
    broken = look(zero3(tmp_path / "nan", math.nan), stats=True)
    frozen = ("layers.1.ln.", "layers.1.query_key_value.", "layers.1.dense.", "scale_buf")
    trained = [row for row in broken.statistics or () if not any(part in row.name for part in frozen)]
    assert len(trained) == 16
    assert all(row.values.nan == row.values.numel > 0 for row in trained)
    assert broken.exit_code == 7
    part = look(tmp_path / "nan", stats=True, tensors="*norm.weight")
    assert [row.name for row in part.statistics or ()] == ["norm.weight"]


def test_statistics_say_that_the_optimizers_state_was_not_looked_at() -> None:
    with_state, without = (str(look(FRAMEWORKS / name, stats=True)) for name in ("z1_bf16", "mcore_llama_dist_tp2pp2"))
    assert "values of the parameters (not of the optimizer's state)" in with_state
    assert "optimizer's state" not in without


def test_a_file_is_measured_as_stored(tmp_path: Path) -> None:
    tree = {"w": torch.randn(30, 20), "n": torch.tensor([1.0, torch.nan]), "i": torch.arange(9), "e": torch.empty(0)}
    torch.save(tree, tmp_path / "t.pt")
    report = look(tmp_path / "t.pt", stats=True)
    assert report.statistics is not None
    for row in report.statistics:
        assert_equal(row.values, expected(tree[row.name]))
    assert report.exit_code == 7
    assert "n: 1 NaN" in words_of(report)
    assert str(tmp_path / "t.pt") in words_of(report)
