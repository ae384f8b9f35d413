"""Read tensors' names: the layer and parameter of one, and the family that all of them show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Guess", "count", "guess_family"]

Keys = frozenset[str]


@dataclass(frozen=True, slots=True)
class Guess:
    """A family guessed from parameters' names, and the evidence."""

    family: str
    evidence: str


def _ends(keys: Iterable[str], *ends: str) -> bool:
    return any(key.endswith(ends) for key in keys)


# (family, evidence, test on the parameters' names); the first match is taken.
# bloom and gpt in Megatron's names: families/bloom.py, families/gpt2.py. The others: transformers' modeling_*.py of the
# family, gpt-neox's megatron/model/transformer.py, megatron/core/models/gpt of Megatron-LM.
_FAMILIES: tuple[tuple[str, str, Callable[[Keys], bool]], ...] = (
    (
        "mixture of experts (MoE)",
        "experts or a router",
        lambda keys: any("experts." in key or "deepspeed_moe" in key for key in keys) or _ends(keys, "router.weight"),
    ),
    (
        "BLOOM",
        "a norm on the word embedding",
        lambda keys: _ends(keys, "word_embeddings.norm.weight", "word_embeddings_layernorm.weight"),
    ),
    (
        "GPT-NeoX",
        "attention.query_key_value",
        lambda keys: any(re.search(r"(^|\.)attention\.query_key_value\.", key) for key in keys),
    ),
    (
        "Qwen3",
        "self_attn.q_proj, norms on query and key",
        lambda keys: _ends(keys, "self_attn.q_proj.weight") and _ends(keys, "self_attn.q_norm.weight"),
    ),
    (
        "Llama",
        "gate_proj, and a bias on self_attn.o_proj or mlp.down_proj",
        lambda keys: _ends(keys, "self_attn.o_proj.bias", "mlp.down_proj.bias") and _ends(keys, "mlp.gate_proj.weight"),
    ),
    (
        "Qwen2",
        "self_attn.q_proj with a bias, gate_proj",
        lambda keys: _ends(keys, "self_attn.q_proj.bias") and _ends(keys, "mlp.gate_proj.weight"),
    ),
    (
        "Llama or Mistral",
        "self_attn.q_proj, gate_proj, no biases",
        lambda keys: _ends(keys, "self_attn.q_proj.weight") and _ends(keys, "mlp.gate_proj.weight"),
    ),
    ("GPT-2", "attn.c_attn", lambda keys: _ends(keys, "attn.c_attn.weight")),
    (
        "Llama-like (RMSNorm)",
        "Megatron's blocks with biases on linear layers, and none on norms",
        lambda keys: (
            _ends(keys, "dense_4h_to_h.bias", "linear_fc2.bias")
            and not _ends(keys, "input_layernorm.bias", "input_norm.bias", "layer_norm_bias")
        ),
    ),
    (
        "Llama-like (RMSNorm, no biases)",
        "Megatron's blocks without biases on norms",
        lambda keys: (
            _ends(keys, "dense_h_to_4h.weight", "linear_fc1.weight")
            and not _ends(keys, "input_layernorm.bias", "input_norm.bias", "layer_norm_bias")
        ),
    ),
    (
        "GPT",
        "Megatron's blocks, learned positions",
        lambda keys: (
            _ends(keys, "dense_h_to_4h.weight", "linear_fc1.weight") and _ends(keys, "position_embeddings.weight")
        ),
    ),
)


def guess_family(parameters: Iterable[str]) -> Guess | None:
    """The family whose parameters have such names, None if no known transformer has them."""
    keys = frozenset(parameters)
    for family, evidence, matches in _FAMILIES:
        if matches(keys):
            return Guess(family, evidence)
    return None


def count(args: Mapping[str, object], *names: str) -> int | None:
    """The first of the named arguments or entries that is a whole number above 0, None if none is."""
    for name in names:
        value = args.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
