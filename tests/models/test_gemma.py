"""Gemma goes to transformers and nowhere else, though its parameters are Llama's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan, verify
from streamconv.core.errors import UnsupportedError
from tests import hf_models as models
from tests.places import FRAMEWORKS

LLAMA = FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0"
RAM: dict[str, Any] = {"max_ram": "1G"}
GEGLU, LESS_ONE, SCALE = "GeGLU", "norms stored less 1", "embedding scaled by sqrt(hidden)"
LACKS = {
    "megatron-core": {GEGLU, SCALE},
    "megatron-legacy": {GEGLU, LESS_ONE, SCALE},
    "deepspeed": {GEGLU, LESS_ONE, SCALE},
    "gpt-neox": {GEGLU, LESS_ONE, SCALE},
}


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("tp", [1, 3])
@pytest.mark.parametrize("target", LACKS)
def test_each_target_names_what_it_cannot_run(target: str, tp: int, tmp_path: Path) -> None:
    """Also at a TP that does not divide the heads: no other TP would do."""
    models.make("gemma", tmp_path / "hf")
    with pytest.raises(UnsupportedError) as caught:
        plan(tmp_path / "hf", to=target, tp=tp)
    assert {words for words in (GEGLU, LESS_ONE, SCALE) if words in caught.value.what} == LACKS[target]
    assert "huggingface" in str(caught.value.remedy)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_cast_model_answers_as_transformers_casts_it(
    dtype: torch.dtype, changes: dict[str, Any], tmp_path: Path
) -> None:
    models.make("gemma", tmp_path / "hf", **changes)
    model = models.load(tmp_path / "hf", dtype)
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", dtype=name, max_shard_size="20KB", **RAM)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    back = models.load(tmp_path / "out", dtype)
    models.assert_same_weights(model, back)
    assert torch.equal(models.logits(model), models.logits(back))


@pytest.mark.slow
def test_the_first_published_configurations_mean_the_tanh_approximation(tmp_path: Path) -> None:
    model = models.make("gemma", tmp_path / "hf")
    edit(tmp_path / "hf", hidden_act="gelu", hidden_activation=None)
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", **RAM)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["hidden_act"], written["hidden_activation"]) == ("gelu", None)
    assert torch.equal(models.logits(model), models.logits(models.load(tmp_path / "out")))
    assert verify(tmp_path / "out", tmp_path / "hf", **RAM).exit_code == 0


@pytest.mark.parametrize("keep_args", [True, False])
def test_no_configuration_makes_a_gemma_of_a_llama(keep_args: bool, tmp_path: Path) -> None:
    """Their parameters have the same names and shapes; what is stored tells them apart only where args are there."""
    models.make("gemma", tmp_path / "gemma", num_key_value_heads=2, head_dim=8)
    convert(LLAMA, tmp_path / "ds", to="deepspeed", keep_args=keep_args, **RAM)
    config, layout = tmp_path / "gemma" / "config.json", None if keep_args else "interleaved"
    words = "GLU: swiglu" if keep_args else "no deepspeed checkpoint is a Gemma: Megatron-DeepSpeed has no .*GeGLU"
    with pytest.raises(UnsupportedError, match=words) as caught:
        plan(tmp_path / "ds", to="huggingface", config=config, qkv_layout=layout, num_heads=4)
    assert "the keys name" not in caught.value.what
    assert caught.value.remedy == "give the configuration of the model that was trained"


def test_the_answers_would_be_a_llamas(tmp_path: Path) -> None:
    """What a translation by names and shapes alone would give: every tensor, and other answers."""
    model = models.make("gemma", tmp_path / "gemma")
    convert(tmp_path / "gemma", tmp_path / "out", to="huggingface", **RAM)
    edit(tmp_path / "out", model_type="llama", architectures=["LlamaForCausalLM"], hidden_act="silu")
    assert not torch.allclose(models.logits(model), models.logits(models.load(tmp_path / "out")), atol=0.1)
