"""Tensors that are no parameters: those that transformers passes over are left behind by name, others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from streamconv import convert, plan
from streamconv.core.errors import DamagedError, UnsupportedError
from tests import hf_models as models

RAM: dict[str, Any] = {"max_ram": "1G"}
LAYER = {"bloom": "transformer.h", "gpt": "transformer.h", "gpt_neox": "gpt_neox.layers"}
MASK = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
FREQUENCIES = torch.arange(4, dtype=torch.float32)

IN_LAYERS = {
    "self_attn.rotary_emb.inv_freq": FREQUENCIES,
    "self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 64, 8),
    "attention.rotary_emb.inv_freq": FREQUENCIES,
    "attention.bias": MASK,
    "attention.masked_bias": torch.tensor(-1e9),
    "attn.bias": MASK.to(torch.uint8),
    "attn.masked_bias": torch.tensor([-1e4]),
    "crossattention.bias": MASK,
    "self_attention.scale_mask_softmax.causal_mask": MASK,
}
OUTSIDE = {
    "model.rotary_emb.inv_freq": FREQUENCIES,
    "rotary_emb.original_inv_freq": FREQUENCIES,
    "model.causal_mask": MASK[0, 0],
    "position_ids": torch.arange(64)[None],
    "transformer.position_ids": torch.arange(64)[None],
    "model.nothing": torch.empty(0),
    "model.layers.0.nothing.weight": torch.empty(0, 32),
}


def with_more(folder: Path, family: str, more: dict[str, torch.Tensor]) -> Path:
    models.make(family, folder)
    stored = load_file(folder / "model.safetensors")
    more = {name: tensor.clone() for name, tensor in more.items()}
    save_file({**stored, **more}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", models.CONFIGS)
def test_buffers_stay_behind_in_every_family(family: str, tmp_path: Path) -> None:
    layers = LAYER.get(family, "model.layers")
    more = {f"{layers}.{n}.{name}": tensor for name, tensor in IN_LAYERS.items() for n in range(models.LAYERS)}
    source = with_more(tmp_path / "hf", family, {**more, **OUTSIDE})
    report = convert(source, tmp_path / "out", to="huggingface", **RAM)
    models.assert_same_weights(AutoModelForCausalLM.from_pretrained(source), models.load(tmp_path / "out"))
    left = {dropped.name: dropped for dropped in report.plan.dropped}
    for name, tensor in IN_LAYERS.items():
        dropped = left[f"{layers}.*.{name}, {models.LAYERS} buffers"]
        assert dropped.nbytes == models.LAYERS * tensor.nbytes
        assert dropped.reason.startswith("no parameter: ")
    for name in OUTSIDE:
        assert left[name.replace(".0.", ".*.")].reason


@pytest.mark.parametrize("to", ["megatron-core", "megatron-legacy", "deepspeed"])
def test_they_stay_behind_for_every_target(to: str, tmp_path: Path) -> None:
    source = with_more(tmp_path / "hf", "llama", {**OUTSIDE, "model.layers.0.self_attn.bias": MASK})
    assert (
        plan(source, to=to, iteration=1).coverage
        == plan(with_more(tmp_path / "b", "llama", {}), to=to, iteration=1).coverage
    )


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.bias", torch.ones(32)),
        ("model.layers.0.self_attn.bias", torch.ones(48, 32)),
        ("model.layers.0.attn.bias", torch.ones(2, 64, 64)),
        ("model.layers.0.self_attn.sinks", torch.ones(4)),
        ("model.logit_scale", torch.tensor(3.0)),
        ("score.weight", torch.ones(2, 32)),
        ("model.inv_freq_scale", torch.ones(4)),
        ("model.layers.4.post_norm.weight", torch.ones(32)),
    ],
)
def test_other_tensors_are_refused_with_a_remedy(name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    source = with_more(tmp_path / "hf", "llama", {name: tensor})
    with pytest.raises(UnsupportedError, match="no tensor of Llama as transformers stores it") as caught:
        plan(source, to="huggingface")
    assert name in str(caught.value)
    assert "load the model with it and save it again" in str(caught.value.remedy)
    # What the remedy says.
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert plan(tmp_path / "saved", to="huggingface")


def test_an_empty_parameter_is_no_buffer(tmp_path: Path) -> None:
    source = with_more(tmp_path / "hf", "llama", {"model.layers.1.mlp.down_proj.weight": torch.empty(0)})
    with pytest.raises(DamagedError, match="down_proj"):
        plan(source, to="huggingface")


def test_a_bias_that_is_not_said_is_no_mask(tmp_path: Path) -> None:
    """GPT-2's masks are called like a bias; Llama's biases are not masks, and neither are others of one element."""
    source = with_more(tmp_path / "hf", "llama", {"model.layers.1.self_attn.o_proj.bias": torch.ones(32)})
    with pytest.raises(DamagedError, match="does not say attention_bias true"):
        plan(source, to="huggingface")
