"""GPT-NeoX and Pythia: rotary positions on part of each head, parallel residual, a head of its own.

transformers: ``models/gpt_neox/modeling_gpt_neox.py``; files keep the head's old name, ``embed_out``
[``conversion_mapping.py``]. Published models keep the padded vocabulary: 50304 and 50432 rows.
"""

from __future__ import annotations

from dataclasses import replace

from streamconv.models.blocks import FINAL_NORM, LAYER_NORM_BLOCK, head, words
from streamconv.models.config.activation_and_window import Activation
from streamconv.models.config.checks import flag, quotient, same_as
from streamconv.models.config.rope import Rope
from streamconv.models.config.settings import NEVER, TOKENS, Constant, Entry, Fixed, Implied, Tied
from streamconv.models.config.sizes import usual_sizes
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HfTensor, HuggingFace, linear
from streamconv.models.mechanisms import BIASES, LAYERNORM, PARALLEL_RESIDUAL, PARTIAL_ROTARY, PLAIN_MLP, ROTARY
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Section

__all__ = ["FAMILY", "SUMMED"]

_LAYER = "gpt_neox.layers.{layer}"

# With a parallel residual each rank adds its own row-parallel biases before the one reduction [gpt-neox
# ``megatron/model/transformer.py:ParallelTransformerLayer.forward``].
SUMMED = ("self_attention.dense.bias", "mlp.dense_4h_to_h.bias")

_BY_HEADS = ("hidden_size", "num_attention_heads")

# transformers ``models/gpt_neox/configuration_gpt_neox.py``. use_parallel_residual is no argument of Megatron's: it is
# gpt-neox's gpt_j_residual, and gpt-neox's own rotary_pct and rotary_emb_base are rotary_percent and rope_theta.
_SETTINGS = (
    *usual_sizes(hidden=6144, layers=44, heads=64, ffn=24576, positions=2048),
    Implied("head_dim", "kv_channels", quotient(*_BY_HEADS), _BY_HEADS, "hidden_size / num_attention_heads"),
    Implied(
        "groups", "num_key_value_heads", same_as("num_attention_heads"), ("num_attention_heads",), "as many as heads"
    ),
    Entry(entry="layer_norm_eps", arg="layernorm_epsilon", default=1e-5),
    Activation("hidden_act", default="gelu"),
    Rope(base="rotary_emb_base", part="rotary_pct", default_part=0.25),
    Entry(entry="use_parallel_residual", arg="use_parallel_residual", default=True, check=flag),
    Constant("attention_bias", True),
    Entry(entry="hidden_dropout", arg="hidden_dropout", default=0.0, matters=False),
    Entry(entry="attention_dropout", arg="attention_dropout", default=0.0, matters=False),
    Entry(entry="initializer_range", arg="init_method_std", default=0.02, matters=False),
    Tied(default=False),
    Fixed("normalization", "layernorm"),
    Fixed("swiglu", False),
    Fixed("add_bias_linear", True),
    *NEVER,
    *TOKENS,
)

FAMILY = ModelFamily(
    name="gpt_neox",
    title="GPT-NeoX",
    mechanisms=frozenset({ROTARY, PARTIAL_ROTARY, PARALLEL_RESIDUAL, LAYERNORM, PLAIN_MLP, BIASES}),
    parameters=(
        words(),
        *(replace(parameter, summed=parameter.key in SUMMED) for parameter in LAYER_NORM_BLOCK),
        *FINAL_NORM,
        head(),
    ),
    huggingface=HuggingFace(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        prefix="gpt_neox.",
        tensors=(
            HfTensor("gpt_neox.embed_in.weight", Section.EMBEDDING, "word_embeddings.weight"),
            *linear(f"{_LAYER}.input_layernorm", "input_layernorm"),
            *linear(f"{_LAYER}.attention.query_key_value", "self_attention.query_key_value"),
            *linear(f"{_LAYER}.attention.dense", "self_attention.dense"),
            *linear(f"{_LAYER}.post_attention_layernorm", "post_attention_layernorm"),
            *linear(f"{_LAYER}.mlp.dense_h_to_4h", "mlp.dense_h_to_4h"),
            *linear(f"{_LAYER}.mlp.dense_4h_to_h", "mlp.dense_4h_to_h"),
            HfTensor("gpt_neox.final_layer_norm.weight", Section.FINAL_NORM, "weight"),
            HfTensor("gpt_neox.final_layer_norm.bias", Section.FINAL_NORM, "bias"),
            HfTensor("embed_out.weight", Section.HEAD, "lm_head.weight"),
        ),
        qkv=QkvLayout.INTERLEAVED,
        settings=_SETTINGS,
        keeps_padding=True,
    ),
    only_named=True,
)
