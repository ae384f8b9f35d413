"""The biases of a block's linear layers that a model may have or not: which of them go together, and where."""

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
"""The keys that an entry of ``config.json`` stands for [transformers ``models/llama/modeling_llama.py``:
``LlamaAttention``, ``LlamaMLP``; ``models/qwen3/modeling_qwen3.py`` has the first alone].
"""


def bias_mechanism(biases: Collection[str]) -> Mechanism:
    """What the blocks of a model with these biases need: a model that has some of the linear layers' needs all, zeros
    where it has none.
    """
    if not biases:
        return NO_BIASES
    return QKV_BIASES if set(biases) == {QKV_BIAS} else BIASES


def entry_of(key: str) -> str:
    """The entry that says whether a model has a bias; KeyError if none does."""
    return {bias: entry for entry, biases in BY_ENTRY.items() for bias in biases}[key]


def said_by(known: Mapping[str, Any]) -> frozenset[str]:
    """The biases that a model has by the entries of its configuration."""
    return frozenset(bias for entry, biases in BY_ENTRY.items() if known.get(entry) for bias in biases)


def in_transformers(biases: Collection[str]) -> frozenset[str]:
    """The biases that transformers' model has if it is to have these: the other one of each pair too."""
    return frozenset(_pairs(biases))


def _pairs(biases: Collection[str]) -> Iterator[str]:
    for pair in BY_ENTRY.values():
        if not set(pair).isdisjoint(biases):
            yield from pair


def in_megatron(biases: Collection[str]) -> frozenset[str]:
    """The biases that a model of Megatron has if it is to have these: those of all linear layers, but for those of
    queries, keys and values alone.

    [``add_bias_linear`` and ``add_qkv_bias``: ``megatron/core/transformer/attention.py``, ``mlp.py``,
    ``megatron/legacy/model/transformer.py`` of Megatron-LM; Megatron-DeepSpeed has the former alone]
    """
    found = frozenset(biases)
    return found if found <= {QKV_BIAS} else frozenset(bias for pair in BY_ENTRY.values() for bias in pair)
