"""Tiny random models of every family, made and saved by transformers itself."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

LAYERS, HIDDEN, HEADS, GROUPS, FFN = 4, 32, 4, 2, 48
TOKENS = torch.arange(24).reshape(2, 12) * 4 % 97

_LLAMA: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "bloom": BloomConfig(vocab_size=256, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS),
    "gemma": GemmaConfig(**{**_LLAMA, "tie_word_embeddings": True}, head_dim=16),
    "gpt": GPT2Config(vocab_size=101, n_positions=64, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=101,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
    ),
    "llama": LlamaConfig(**_LLAMA),
    "mistral": MistralConfig(**_LLAMA, sliding_window=None),
    "phi3": Phi3Config(**_LLAMA, bos_token_id=1, eos_token_id=2, pad_token_id=0),
    "qwen2": Qwen2Config(**_LLAMA),
    "qwen3": Qwen3Config(**_LLAMA, head_dim=16),
}
"""By the name of the family. Gemma's and Qwen 3's heads are wider than the hidden size over their number."""

# With seed 4 transformers' own float32 is off by more than other frameworks may be.
_SEEDS = {"phi3": 8}


def make(family: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A model whose every parameter is random, norms and biases too, saved in ``folder``."""
    config = type(CONFIGS[family]).from_dict({**CONFIGS[family].to_dict(), **changes})
    torch.manual_seed(_SEEDS.get(family, len(family)))
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 * torch.randn(parameter.shape)
            parameter.copy_(1 + spread if parameter.dim() == 1 else spread)
    model.save_pretrained(folder)
    return model


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """``from_pretrained``, which must find every key and no other."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    """What a model answers for :data:`TOKENS`."""
    with torch.no_grad():
        return model(TOKENS).logits


def exact_logits(model: PreTrainedModel) -> torch.Tensor:
    """The same, computed in float64: float32 rounds by as much as other frameworks are allowed to differ."""
    return logits(deepcopy(model).double())


def assert_same_weights(left: PreTrainedModel, right: PreTrainedModel) -> None:
    """Bit for bit, name for name."""
    first, second = left.state_dict(), right.state_dict()
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name
