"""Llama 2 and 3: RMSNorm, a gated MLP (SwiGLU), rotary positions, heads that may share keys and values.

Linear layers have no biases unless the configuration switches them on (Granite, Bielik): in the attention, in the MLP,
or in both. transformers: ``models/llama/modeling_llama.py``. Mistral and Qwen name their tensors in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamconv.models.blocks import RMS_NORM, block, head, words
from streamconv.models.config.biases import AnyBias, Bias
from streamconv.models.config.rope import Rope
from streamconv.models.config.settings import NEVER, TOKENS, Constant, Entry, Fixed, Gives, Setting, Tied
from streamconv.models.config.sizes import head_sizes, usual_sizes
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HfTensor, HuggingFace, linear, split
from streamconv.models.mechanisms import GROUPED_HEADS, HEAD_SIZE, NO_BIASES, RMSNORM, ROTARY, SWIGLU
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Section

__all__ = ["BIASED", "FAMILY", "MECHANISMS", "PARAMETERS", "settings", "tensors"]

_LAYER = "model.layers.{layer}"
_QKV = {part: f"{_LAYER}.self_attn.{part[0]}_proj" for part in ("query", "key", "value")}
_GLU = {part: f"{_LAYER}.mlp.{part}_proj" for part in ("gate", "up")}

PARAMETERS = (words(), *block(norm_bias=False, qkv_bias=False, bias=False, gated=True), *RMS_NORM, head())
BIASED = (
    words(),
    *block(norm_bias=False, qkv_bias=True, bias=True, gated=True, optional=True),
    *RMS_NORM,
    head(),
)
"""The same with an optional bias on every linear layer of the blocks."""

MECHANISMS = frozenset({ROTARY, RMSNORM, SWIGLU, NO_BIASES, GROUPED_HEADS, HEAD_SIZE})


def tensors(
    *, qkv_bias: bool = False, head_norms: bool = False, dense_bias: bool = False, mlp_bias: bool = False
) -> Iterator[HfTensor]:
    """The tensors of a Llama-like model.

    Args:
        qkv_bias: queries, keys and values have biases (Qwen 2), or may have them.
        head_norms: queries and keys are normalised by head (Qwen 3).
        dense_bias: the output projection of the attention may have a bias.
        mlp_bias: the linear layers of the MLP may have biases.
    """
    yield HfTensor("model.embed_tokens.weight", Section.EMBEDDING, "word_embeddings.weight")
    yield from linear(f"{_LAYER}.input_layernorm", "input_layernorm", bias=False)
    yield from split(_QKV, "self_attention.query_key_value", bias=qkv_bias)
    if head_norms:
        yield from linear(f"{_LAYER}.self_attn.q_norm", "self_attention.q_layernorm", bias=False)
        yield from linear(f"{_LAYER}.self_attn.k_norm", "self_attention.k_layernorm", bias=False)
    yield from linear(f"{_LAYER}.self_attn.o_proj", "self_attention.dense", bias=dense_bias)
    yield from linear(f"{_LAYER}.post_attention_layernorm", "post_attention_layernorm", bias=False)
    yield from split(_GLU, "mlp.dense_h_to_4h", bias=mlp_bias)
    yield from linear(f"{_LAYER}.mlp.down_proj", "mlp.dense_4h_to_h", bias=mlp_bias)
    yield HfTensor("model.norm.weight", Section.FINAL_NORM, "weight")
    yield HfTensor("lm_head.weight", Section.HEAD, "lm_head.weight")


def settings(
    *,
    positions: int,
    ffn: int = 11008,
    groups: int | None = None,
    head_dim: int | None = None,
    biases: tuple[str, ...] = (),
) -> tuple[Setting, ...]:
    """The settings of a Llama-like model.

    Args:
        positions: transformers' default of ``max_position_embeddings``.
        ffn: its default of ``intermediate_size``.
        groups: its default of ``num_key_value_heads``, as :func:`head_sizes` takes it.
        head_dim: its default of ``head_dim``, as :func:`head_sizes` takes it.
        biases: the family's entries that switch biases of linear layers on.
    """
    return (
        *usual_sizes(
            hidden=4096,
            layers=32,
            heads=32,
            ffn=ffn,
            positions=positions,
            per_head=head_sizes(groups=groups, head_dim=head_dim),
        ),
        Entry(entry="rms_norm_eps", arg="layernorm_epsilon", default=1e-6),
        Rope(),
        Constant("hidden_act", "silu", alike=("swish",)),
        Entry(entry="attention_dropout", arg="attention_dropout", default=0.0, matters=False),
        Entry(entry="initializer_range", arg="init_method_std", default=0.02, matters=False),
        Tied(default=False),
        Fixed("normalization", "rmsnorm"),
        AnyBias(biases) if biases else Fixed("add_bias_linear", False),
        Fixed("apply_residual_connection_post_layernorm", False),
        # bigscience's fork has glu_activation instead, whose values the source settles.
        Gives("swiglu", True),
        Gives("hidden_dropout", 0.0),
        *NEVER,
        *TOKENS,
    )


FAMILY = ModelFamily(
    name="llama",
    title="Llama",
    mechanisms=MECHANISMS,
    parameters=PARAMETERS,
    huggingface=HuggingFace(
        model_type="llama",
        architecture="LlamaForCausalLM",
        prefix="model.",
        tensors=tuple(tensors()),
        widest=tuple(tensors(qkv_bias=True, dense_bias=True, mlp_bias=True)),
        qkv=QkvLayout.BLOCKS,
        settings=(
            *settings(positions=2048, biases=("attention_bias", "mlp_bias")),
            Bias("attention_bias"),
            Bias("mlp_bias"),
        ),
    ),
    widest=BIASED,
)
