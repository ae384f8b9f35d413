"""The transformer block that BLOOM and GPT share in Megatron's names: LayerNorm, biases everywhere, a 4h MLP.

Axes: ``megatron/model/transformer.py`` of Megatron-LM and Megatron-DeepSpeed. Column-parallel layers are cut on dim 0
with their bias, row-parallel ones on dim 1, and the row-parallel bias is added once, after the reduction: every rank
holds it.
"""

from __future__ import annotations

from streamconv.families.base import Parameter, Section

__all__ = ["BLOCK", "FINAL_NORM"]

_QKV = ("query", "key", "value")

BLOCK = (
    Parameter(Section.LAYER, "input_layernorm.weight", ("hidden",)),
    Parameter(Section.LAYER, "input_layernorm.bias", ("hidden",)),
    Parameter(Section.LAYER, "self_attention.query_key_value.weight", ("qkv", "hidden"), axis=0, parts=_QKV),
    Parameter(Section.LAYER, "self_attention.query_key_value.bias", ("qkv",), axis=0, parts=_QKV),
    Parameter(Section.LAYER, "self_attention.dense.weight", ("hidden", "attention"), axis=1),
    Parameter(Section.LAYER, "self_attention.dense.bias", ("hidden",)),
    Parameter(Section.LAYER, "post_attention_layernorm.weight", ("hidden",)),
    Parameter(Section.LAYER, "post_attention_layernorm.bias", ("hidden",)),
    Parameter(Section.LAYER, "mlp.dense_h_to_4h.weight", ("ffn", "hidden"), axis=0),
    Parameter(Section.LAYER, "mlp.dense_h_to_4h.bias", ("ffn",), axis=0),
    Parameter(Section.LAYER, "mlp.dense_4h_to_h.weight", ("hidden", "ffn"), axis=1),
    Parameter(Section.LAYER, "mlp.dense_4h_to_h.bias", ("hidden",)),
)

FINAL_NORM = (
    Parameter(Section.FINAL_NORM, "weight", ("hidden",)),
    Parameter(Section.FINAL_NORM, "bias", ("hidden",)),
)
