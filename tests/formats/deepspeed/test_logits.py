"""The logits of the live training run come out of the converted weights, merged and run in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from streamconv import convert
from tests import oracle
from tests.places import REAL, Source

pytestmark = pytest.mark.slow

FP32 = [source for source in REAL if "fp32" in source.name]


def block_of(model: oracle.Model, layer: int, key: str) -> torch.Tensor:
    return model[f"layers.{layer}.{key}"]


def run_bloom(model: oracle.Model, tokens: torch.Tensor) -> torch.Tensor:
    layers = 1 + max(int(key.split(".")[1]) for key in model if key.startswith("layers."))
    vocab, hidden = model["word_embeddings.weight"].shape
    config = BloomConfig(vocab_size=vocab, hidden_size=hidden, n_layer=layers, n_head=oracle.HEADS)
    state = {
        "transformer.word_embeddings.weight": model["word_embeddings.weight"],
        "transformer.word_embeddings_layernorm.weight": model["word_embeddings.norm.weight"],
        "transformer.word_embeddings_layernorm.bias": model["word_embeddings.norm.bias"],
        "transformer.ln_f.weight": model["final_layernorm.weight"],
        "transformer.ln_f.bias": model["final_layernorm.bias"],
        "lm_head.weight": model["word_embeddings.weight"],
    }
    for key, tensor in model.items():
        if key.startswith("layers."):
            flat = tensor.reshape(-1, *tensor.shape[3:]) if "query_key_value" in key else tensor
            state[f"transformer.h.{key.removeprefix('layers.')}"] = flat
    network = BloomForCausalLM(config)
    network.load_state_dict(state, strict=True)
    for block in network.transformer.h:
        block.mlp.gelu_impl = torch.nn.GELU()  # the run's own: erf, not BLOOM's tanh
    return logits_of(network, tokens)


def run_gpt(model: oracle.Model, tokens: torch.Tensor) -> torch.Tensor:
    layers = 1 + max(int(key.split(".")[1]) for key in model if key.startswith("layers."))
    vocab, hidden = model["word_embeddings.weight"].shape
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=len(model["position_embeddings.weight"]),
        n_embd=hidden,
        n_layer=layers,
        n_head=oracle.HEADS,
        activation_function="gelu",
        tie_word_embeddings="lm_head.weight" not in model,
    )
    state = oracle.as_gpt2(model)
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    network = GPT2LMHeadModel(config)
    network.load_state_dict(state, strict=True)
    return logits_of(network, tokens)


def logits_of(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        logits: torch.Tensor = network(tokens).logits
    return logits


@pytest.mark.parametrize("source", FP32, ids=lambda source: source.name)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 2)])
def test_converted_weights_answer_as_the_live_model_did(source: Source, tp: int, pp: int, tmp_path: Path) -> None:
    answer = torch.load(source.folder / "oracle_logits.pt", weights_only=True)
    convert(source.folder, tmp_path / "out", tp=tp, pp=pp, max_ram="2G", to="megatron-legacy")
    model = oracle.result_model(oracle.result_files(tmp_path / "out", tp, pp))
    logits = (run_bloom if "bloom" in source.name else run_gpt)(model, answer["tokens"])
    # The stored padding rows were trained a little and refilled ones are not, so only true tokens compare.
    expected = answer["logits"][..., : source.true_vocab].float()
    assert torch.allclose(logits[..., : source.true_vocab], expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
