"""The transformer blocks that families share, in Megatron's names.

Axes: ``megatron/model/transformer.py`` of Megatron-LM and Megatron-DeepSpeed. Column-parallel layers are cut on dim 0
with their bias, row-parallel ones on dim 1, and the row-parallel bias is added once, after the reduction: every rank
holds it.
"""

from __future__ import annotations

from streamconv.models.parameter import GLU, QKV, Parameter, Section

__all__ = ["FINAL_NORM", "LAYER_NORM_BLOCK", "RMS_NORM", "block", "head", "words"]


def block(
    *, norm_bias: bool, qkv_bias: bool, bias: bool, gated: bool = False, optional: bool = False
) -> tuple[Parameter, ...]:
    """The parameters of one transformer layer.

    The three biases say which of its parts have one, ``gated`` whether its MLP is a gated linear unit, and ``optional``
    whether a model may lack the biases of its linear layers.
    """
    norm = ("weight", "bias") if norm_bias else ("weight",)
    parts = GLU if gated else ()
    return (
        *(Parameter(Section.LAYER, f"input_layernorm.{kind}", ("hidden",)) for kind in norm),
        Parameter(Section.LAYER, "self_attention.query_key_value.weight", ("qkv", "hidden"), axis=0, parts=QKV),
        *_only(qkv_bias, Parameter(Section.LAYER, "self_attention.query_key_value.bias", ("qkv",), 0, QKV, optional)),
        Parameter(Section.LAYER, "self_attention.dense.weight", ("hidden", "attention"), axis=1),
        *_only(bias, Parameter(Section.LAYER, "self_attention.dense.bias", ("hidden",), optional=optional)),
        *(Parameter(Section.LAYER, f"post_attention_layernorm.{kind}", ("hidden",)) for kind in norm),
        Parameter(Section.LAYER, "mlp.dense_h_to_4h.weight", ("ffn_in", "hidden"), axis=0, parts=parts),
        *_only(bias, Parameter(Section.LAYER, "mlp.dense_h_to_4h.bias", ("ffn_in",), 0, parts, optional)),
        Parameter(Section.LAYER, "mlp.dense_4h_to_h.weight", ("hidden", "ffn"), axis=1),
        *_only(bias, Parameter(Section.LAYER, "mlp.dense_4h_to_h.bias", ("hidden",), optional=optional)),
    )


def _only(condition: bool, parameter: Parameter) -> tuple[Parameter, ...]:
    return (parameter,) if condition else ()


def words() -> Parameter:
    """The word embedding."""
    return Parameter(Section.EMBEDDING, "word_embeddings.weight", ("vocab", "hidden"), axis=0)


def head() -> Parameter:
    """The head; a model without this parameter uses the word embedding as its head."""
    return Parameter(Section.HEAD, "lm_head.weight", ("vocab", "hidden"), axis=0, optional=True)


LAYER_NORM_BLOCK = block(norm_bias=True, qkv_bias=True, bias=True)

FINAL_NORM = (
    Parameter(Section.FINAL_NORM, "weight", ("hidden",)),
    Parameter(Section.FINAL_NORM, "bias", ("hidden",)),
)

RMS_NORM = FINAL_NORM[:1]
