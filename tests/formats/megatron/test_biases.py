"""Biases of linear layers, of Llama and Qwen 3, in Megatron and back: labels in their places, and zeros beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan, stream
from streamconv.cli.main import main
from streamconv.core.errors import UnsupportedError
from streamconv.models.biases import BY_ENTRY
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.biased import (
    ATTENTION,
    BIASED,
    BOTH,
    MLP,
    MODELS,
    WHOLE,
    Biased,
    entries_of,
    notes_of,
    said,
)
from tests.formats.megatron.models import CORE, MULTIPLE, check_hugging_face, to_torch
from tests.formats.megatron.rank_files import Cut, even

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")


# -- to Megatron and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [even(1, 1), even(2, 2), even(4, 3), even(2, 2, 3)], ids=str)
@pytest.mark.parametrize("biased", MODELS, ids=str)
def test_each_rank_has_its_labels_and_zeros_and_all_of_it_comes_back(biased: Biased, cut: Cut, tmp_path: Path) -> None:
    case = biased.save(tmp_path / "hf")
    root = to_torch(tmp_path / "hf", tmp_path / "core", cut, config=MULTIPLE)
    files.check_ranks(root, biased.in_megatron(), cut, "te")
    (args,) = {
        (state["args"].add_bias_linear, state["args"].add_qkv_bias, state["args"].normalization)
        for state in files.read_ranks(root, cut).values()
    }
    assert args == (bool(biased.keys), False, "RMSNorm")
    check_hugging_face(root, tmp_path / "back", case)
    assert entries_of(tmp_path / "back") == said(biased)


@pytest.mark.slow
@pytest.mark.parametrize("biased", MODELS, ids=str)
def test_the_same_in_torch_dist(biased: Biased, tmp_path: Path) -> None:
    case, cut = biased.save(tmp_path / "hf"), even(2, 2)
    convert(tmp_path / "hf", tmp_path / "core", tp=2, pp=2, config=MULTIPLE, **CORE)
    found, _ = files.read_dist(files.checkpoint_of(tmp_path / "core"))
    files.assert_same(found, files.whole_tensors(biased.in_megatron(), cut.multiple * cut.tp), biased.in_megatron())
    check_hugging_face(tmp_path / "core", tmp_path / "back", case)
    assert entries_of(tmp_path / "back") == said(biased)


@pytest.mark.parametrize("shape", [lambda tensors: tensors, files.by_layer, files.in_halves], ids=["w", "layers", "wv"])
def test_torch_dist_as_megatron_saves_it(shape: Callable[[Any], Any], tmp_path: Path) -> None:
    """Stacked, by layer, and with names of their own for both halves of the gated layer's bias."""
    biased = Biased("llama", BOTH)
    model = biased.in_megatron()
    tree = shape(files.whole_tensors(model, 4))
    if shape is files.in_halves:
        name = "decoder.layers.mlp.linear_fc1.bias"
        halves = tree.pop(name).chunk(2, 1)
        tree |= {f"{name}_{letter}": half.contiguous() for letter, half in zip("wv", halves, strict=True)}
    common = {"args": files.core_args(model, even(1, 1)), "iteration": 7, "checkpoint_version": 3.0}
    files.save_dist(tmp_path / "core", tree, common)
    check_hugging_face(tmp_path / "core", tmp_path / "hf", biased.case())


@pytest.mark.slow
@pytest.mark.parametrize("biased", [b for b in BIASED if b.name == "llama"], ids=str)
@pytest.mark.parametrize("to", ["megatron-legacy", "deepspeed"])
def test_the_other_megatrons_have_them_on_every_linear_layer(to: str, biased: Biased, tmp_path: Path) -> None:
    case = biased.save(tmp_path / "hf")
    work = plan(tmp_path / "hf", to=to, tp=2, pp=2)
    assert len(notes_of(work)) == bool(biased.zeros)
    convert(tmp_path / "hf", tmp_path / "out", to=to, tp=2, pp=2, max_ram="1G")
    loaded = (torch.load(path, weights_only=False) for path in sorted((tmp_path / "out").rglob("*.pt")))
    found = [vars(state["args"])["add_bias_linear"] for state in loaded if "args" in state]
    assert found == [True] * 4
    check_hugging_face(tmp_path / "out", tmp_path / "back", case)
    assert entries_of(tmp_path / "back") == said(biased)


def test_the_legacy_release_is_that_of_rmsnorm(tmp_path: Path) -> None:
    """Biases on all linear layers need no release that has them on queries, keys and values alone."""
    Biased("llama", BOTH).save(tmp_path / "hf")
    (names,) = [fact.evidence for fact in plan(tmp_path / "hf", to="megatron-legacy").notes if "names of" in fact.what]
    assert "core_v0.4" in names


def test_bigsciences_fork_is_refused(tmp_path: Path) -> None:
    Biased("llama", BOTH).save(tmp_path / "hf")
    with pytest.raises(UnsupportedError, match="RMSNorm"):
        plan(tmp_path / "hf", to="deepspeed", fork="bigscience")


def test_streamed_shards_have_the_zeros(tmp_path: Path) -> None:
    biased = Biased("llama", MLP)
    biased.save(tmp_path / "hf")
    expected = dict(files.core_files(biased.in_megatron(), even(2, 1), "te"))
    seen = 0
    for one in stream(tmp_path / "hf", to="megatron-core", container="torch", tp=2, config=MULTIPLE, max_ram="1G"):
        assert torch.equal(one.tensor, expected[one.rank.tp, 0][0][one.name]), one.name
        seen += 1
    assert seen == sum(len(chunks[0]) for chunks in expected.values())


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_cast_keeps_zeros_and_what_is_left_behind(name: str, tmp_path: Path) -> None:
    biased, dtype = Biased("llama", ATTENTION), {"bfloat16": "bf16", "float16": "fp16"}[name]
    biased.save(tmp_path / "hf")
    to_torch(tmp_path / "hf", tmp_path / "core", even(2, 2), config=MULTIPLE, dtype=dtype)
    model = biased.in_megatron()
    rounded = {key: tensor.to(getattr(torch, name)) for key, tensor in model.tensors.items()}
    files.check_ranks(tmp_path / "core", replace(model, tensors=rounded), even(2, 2), "te")
    convert(tmp_path / "core", tmp_path / "back", **WHOLE)
    assert entries_of(tmp_path / "back") == said(biased)


# -- what a plan says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", MODELS, ids=str)
def test_a_plan_names_the_zeros(biased: Biased, tmp_path: Path) -> None:
    biased.save(tmp_path / "hf")
    notes = notes_of(plan(tmp_path / "hf", to="megatron-core", tp=2))
    order = [key for pair in BY_ENTRY.values() for key in pair if key in biased.zeros]
    words = "the source has none, and Megatron has biases on every linear layer, on queries, keys and values alone"
    assert notes == [f"zeros for {' and '.join(order)} in 12 layers: {words}, or on none"] * bool(order)


def test_plans_for_people_and_machines_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Biased("llama", ATTENTION).save(tmp_path / "hf")
    core = to_torch(tmp_path / "hf", tmp_path / "core", even(1, 1), config=MULTIPLE)
    zeros = "zeros for mlp.dense_h_to_4h.bias and mlp.dense_4h_to_h.bias in 12 layers"
    assert main(["plan", str(tmp_path / "hf")]) == 0
    assert zeros in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "hf"), "--json"]) == 0
    assert zeros in [note["what"] for note in json.loads(capsys.readouterr().out)["target"]["notes"]]
    assert main(["plan", str(core), "--to", "huggingface", "--vocab-size", "50", "--json"]) == 0
    (left,) = [one for one in json.loads(capsys.readouterr().out)["dropped"] if "bias" in one["name"]]
    assert left["name"] == zeros.removeprefix("zeros for ").replace(" in ", " of ")


def test_a_plan_names_what_is_left_behind(tmp_path: Path) -> None:
    Biased("llama", ATTENTION).save(tmp_path / "hf")
    cut = even(2, 2)
    core = to_torch(tmp_path / "hf", tmp_path / "core", cut, config=MULTIPLE)
    work = plan(core, to="huggingface", vocab_size=50)
    (left,) = [dropped for dropped in work.dropped if "bias" in dropped.name]
    assert left.name == "mlp.dense_h_to_4h.bias and mlp.dense_4h_to_h.bias of 12 layers"
    sizes = Biased("llama", ATTENTION).case().model().sizes
    assert left.nbytes == 4 * 12 * (2 * sizes.ffn + 2 * sizes.hidden)
    assert "zero in every element" in left.reason
    assert not any("mlp" in replica.name for replica in work.replicas)
