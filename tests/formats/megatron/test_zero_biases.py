"""Biases of a training checkpoint on the way to transformers: what is zero stays behind, and nothing else; faults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from streamconv import convert, plan
from streamconv.core.errors import DamagedError, UnsupportedError, UsageError
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.biased import (
    ALL,
    ATTENTION,
    DENSE,
    QKV,
    WHOLE,
    Biased,
    entries_of,
    notes_of,
    saved,
)
from tests.formats.megatron.models import MULTIPLE, case_of, check_hugging_face, to_torch
from tests.formats.megatron.rank_files import even
from tests.making.megatron_core import core_key

# -- zeros that are none -----------------------------------------------------------------------------------------------


def changed(core: Path, name: str, value: float, stage: str = "mp_rank_00") -> None:
    """The last element of one tensor of one rank."""
    path = files.checkpoint_of(core) / stage / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    state["model"][name].view(-1)[-1] = value
    torch.save(state, path)


@pytest.mark.parametrize("value", [-0.0, float("nan"), 1e-45, 3.0])
@pytest.mark.parametrize("module", ["linear_fc1", "linear_fc2"])
def test_one_element_that_is_not_zero_keeps_the_pair(module: str, value: float, tmp_path: Path) -> None:
    Biased("llama", ATTENTION).save(tmp_path / "hf")
    core = to_torch(tmp_path / "hf", tmp_path / "core", even(1, 1), config=MULTIPLE)
    changed(core, f"decoder.layers.11.mlp.{module}.bias", value)
    convert(core, tmp_path / "back", **WHOLE)
    assert entries_of(tmp_path / "back") == {"attention_bias": True, "mlp_bias": True}
    found = load_file(tmp_path / "back" / "model.safetensors")
    last = {"linear_fc1": "up_proj", "linear_fc2": "down_proj"}[module]
    biases = {name: tensor for name, tensor in found.items() if ".mlp." in name and name.endswith("bias")}
    assert len(biases) == 36
    odd = biases.pop(f"model.layers.11.mlp.{last}.bias")
    assert torch.equal(odd[-1:].view(torch.int32), torch.tensor([value]).view(torch.int32))
    assert not any(tensor.view(torch.int32).any() for tensor in (odd[:-1], *biases.values()))


def test_a_copy_that_is_not_zero_on_another_rank_keeps_the_pair(tmp_path: Path) -> None:
    """Row-parallel biases are copies; one that has drifted is for the user to see."""
    Biased("llama", ATTENTION).save(tmp_path / "hf")
    core = to_torch(tmp_path / "hf", tmp_path / "core", even(2, 1), config=MULTIPLE)
    changed(core, "decoder.layers.3.mlp.linear_fc2.bias", 1.0, "mp_rank_01")
    report = convert(core, tmp_path / "back", **WHOLE)
    assert entries_of(tmp_path / "back")["mlp_bias"] is True
    assert [drift.name for drift in report.drifts] == ["layers.3.mlp.dense_4h_to_h.bias"]


def test_zeros_stay_where_the_configuration_says_that_they_are_the_models(tmp_path: Path) -> None:
    Biased("llama", ATTENTION).save(tmp_path / "hf")
    core = to_torch(tmp_path / "hf", tmp_path / "core", even(2, 2), config=MULTIPLE)
    work = plan(core, to="huggingface", vocab_size=50, config={"mlp_bias": True})
    assert not any("bias" in dropped.name for dropped in work.dropped)
    convert(core, tmp_path / "back", config={"mlp_bias": True}, **WHOLE)
    assert entries_of(tmp_path / "back") == {"attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(("entry", "value"), [("attention_bias", False), ("mlp_bias", True)])
def test_a_configuration_that_the_tensors_contradict_is_refused(entry: str, value: bool, tmp_path: Path) -> None:
    biased = Biased("llama", ATTENTION if entry == "attention_bias" else ())
    biased.save(tmp_path / "hf")
    core = to_torch(tmp_path / "hf", tmp_path / "core", even(1, 1), config=MULTIPLE)
    with pytest.raises(UsageError, match=f"{entry} is {value} in config and {not value} in the source"):
        plan(core, to="huggingface", vocab_size=50, config={entry: value})


@pytest.mark.slow
def test_an_mlp_of_qwen_3_with_biases_stays_in_megatron(tmp_path: Path) -> None:
    model = Biased("qwen3", ATTENTION).case(ALL).model()
    cut = even(2, 2)
    args = files.core_args(model, cut)
    core = files.save_ranks(tmp_path / "core", cut, files.core_files(model, cut), args=args, checkpoint_version=3.0)
    words = "Qwen 3 in transformers cannot be this: biases on mlp.dense_h_to_4h and mlp.dense_4h_to_h that are not zero"
    with pytest.raises(UnsupportedError, match=words):
        plan(core, to="huggingface", vocab_size=50)
    other = to_torch(core, tmp_path / "other", even(4, 1), vocab_size=50, config=MULTIPLE)
    files.check_ranks(other, model, even(4, 1), "te")


# -- Megatron's own sets -----------------------------------------------------------------------------------------------


def test_queries_keys_and_values_alone_get_zeros_beside_them_in_transformers(tmp_path: Path) -> None:
    """``add_qkv_bias`` of Megatron-Core; Qwen 3 in transformers has a bias on o_proj with them."""
    biased = Biased("qwen3", ATTENTION)
    model = biased.case([QKV]).model()
    core = saved(model, tmp_path / "core", even(2, 2), add_bias_linear=False)
    (note,) = notes_of(plan(core, to="huggingface", vocab_size=50))
    assert note.startswith(
        f"zeros for {DENSE} in 12 layers: the source has none, and transformers has a bias on o_proj"
    )
    convert(core, tmp_path / "hf", **WHOLE)
    assert entries_of(tmp_path / "hf") == {"attention_bias": True, "mlp_bias": None}
    found = load_file(tmp_path / "hf" / "model.safetensors")
    expected = biased.case([QKV]).tensors()
    zeros = {name: torch.zeros(16) for name in found if name.endswith("o_proj.bias")}
    assert len(zeros) == 12
    files.assert_same(found, {**expected, **zeros}, model)
    again = to_torch(core, tmp_path / "again", even(4, 1), vocab_size=50, config=MULTIPLE)
    files.check_ranks(again, model, even(4, 1), "te")


def test_queries_keys_and_values_alone_are_qwen_2_where_nothing_names_another(tmp_path: Path) -> None:
    model = case_of("qwen2", head=True).model()
    assert plan(saved(model, tmp_path / "core", even(1, 1)), to="huggingface", vocab_size=50).family == "Qwen 2"


def test_all_biases_zero_is_a_model_without(tmp_path: Path) -> None:
    biased = Biased("llama", ())
    own, wide = biased.case().model(), biased.case(ALL).model()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in wide.tensors.items() if name not in own.tensors}
    core = saved(replace(own, tensors={**own.tensors, **zeros}), tmp_path / "core", even(2, 2))
    check_hugging_face(core, tmp_path / "hf", biased.case())
    assert entries_of(tmp_path / "hf") == {"attention_bias": False, "mlp_bias": False}


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 5])
@pytest.mark.parametrize("missing", [False, True])
def test_one_layer_that_is_not_like_the_others_is_named(layer: int, missing: bool, tmp_path: Path) -> None:
    keys = ALL if missing else frozenset()
    model = Biased("llama", ()).case(keys).model()
    name, key = f"layers.{layer}.{DENSE}", "decoder.layers.{}.self_attention.linear_proj.bias"
    odd = {name: torch.zeros(16)} if not missing else {}
    tensors = {known: tensor for known, tensor in model.tensors.items() if not (missing and known == name)}
    core = saved(replace(model, tensors={**tensors, **odd}), tmp_path / "core", even(1, 1))
    other = 1 if layer == 0 else 0
    there, gone = (other, layer) if missing else (layer, other)
    with pytest.raises(DamagedError) as caught:
        plan(core, to="huggingface", vocab_size=50)
    assert f"{key.format(there)} is stored, and {key.format(gone)} is not" in str(caught.value)


@pytest.mark.parametrize("missing", sorted(ALL - {QKV}))
def test_a_set_that_megatron_cannot_have_is_named(missing: str, tmp_path: Path) -> None:
    model = Biased("llama", ()).case(ALL - {missing}).model()
    name = core_key(missing, "te")
    with pytest.raises(DamagedError, match=rf"decoder\.layers\.0\.{name} is missing: there are biases on"):
        plan(saved(model, tmp_path / "core", even(1, 1)), to="megatron-core")


def test_a_bias_of_another_shape_is_named_as_it_is_stored(tmp_path: Path) -> None:
    model = Biased("llama", ()).case(ALL).model()
    model = replace(model, tensors={**model.tensors, f"layers.2.{DENSE}": torch.zeros(17)})
    words = rf"layers\.2\.{DENSE} is \(17,\), expected \(16,\).*; stored as decoder\.layers\.2\..*linear_proj\.bias"
    with pytest.raises(DamagedError, match=words):
        plan(saved(model, tmp_path / "core", even(1, 1)), to="huggingface", vocab_size=50)


def test_args_that_promise_biases_which_are_not_there(tmp_path: Path) -> None:
    core = saved(Biased("llama", ()).case().model(), tmp_path / "core", even(1, 1), add_bias_linear=True)
    with pytest.raises(DamagedError, match=r"args\.add_bias_linear is True, and decoder\.layers\.0\..* is not stored"):
        plan(core, to="megatron-core")
