"""The optional biases of a block's linear layers, and which sets of them each framework can have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from streamconv.models.mechanisms import BIASES, NO_BIASES, QKV_BIASES, Mechanism

__all__ = [
    "BIAS_MECHANISMS",
    "BY_ENTRY",
    "QKV_BIAS",
    "bias_mechanism",
    "entry_of",
    "in_megatron",
    "in_transformers",
    "said_by",
]

BIAS_MECHANISMS = (BIASES, QKV_BIASES, NO_BIASES)

QKV_BIAS = "self_attention.query_key_value.bias"

BY_ENTRY: Mapping[str, tuple[str, str]] = {
    "attention_bias": (QKV_BIAS, "self_attention.dense.bias"),
    "mlp_bias": ("mlp.dense_h_to_4h.bias", "mlp.dense_4h_to_h.bias"),
}
"""The bias keys that each entry of ``config.json`` switches on [transformers ``models/llama/modeling_llama.py``:
``LlamaAttention``, ``LlamaMLP``; ``models/qwen3/modeling_qwen3.py`` has the first alone].
"""


def bias_mechanism(biases: Collection[str]) -> Mechanism:
    """The bias mechanism that a framework needs for a model with these biases.

    Unless they are on queries, keys and values alone, a model with any needs them all; those that it lacks are zeros.
    """
    if not biases:
        return NO_BIASES
    return QKV_BIASES if set(biases) == {QKV_BIAS} else BIASES


def entry_of(key: str) -> str:
    """The entry of ``config.json`` that switches a bias on; KeyError if no entry does."""
    return {bias: entry for entry, biases in BY_ENTRY.items() for bias in biases}[key]


def said_by(known: Mapping[str, Any]) -> frozenset[str]:
    """The biases that a configuration switches on."""
    return frozenset(bias for entry, biases in BY_ENTRY.items() if known.get(entry) for bias in biases)


def in_transformers(biases: Collection[str]) -> frozenset[str]:
    """The biases of transformers' model if it has at least these: an entry switches on all of its biases."""
    return frozenset(_pairs(biases))


def _pairs(biases: Collection[str]) -> Iterator[str]:
    for pair in BY_ENTRY.values():
        if not set(pair).isdisjoint(biases):
            yield from pair


def in_megatron(biases: Collection[str]) -> frozenset[str]:
    """The biases of Megatron's model if it has at least these: on queries, keys and values alone, or on all linear
    layers.

    [``add_bias_linear`` and ``add_qkv_bias``: ``megatron/core/transformer/attention.py``, ``mlp.py``,
    ``megatron/legacy/model/transformer.py`` of Megatron-LM; Megatron-DeepSpeed has the former alone]
    """
    given = frozenset(biases)
    return given if given <= {QKV_BIAS} else frozenset(bias for pair in BY_ENTRY.values() for bias in pair)
