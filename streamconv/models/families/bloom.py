"""BLOOM: ALiBi instead of position embeddings, a LayerNorm on the word embedding, a head tied to the embedding.

transformers: ``models/bloom/modeling_bloom.py``.
"""

from __future__ import annotations

from streamconv.models.blocks import FINAL_NORM, LAYER_NORM_BLOCK, words
from streamconv.models.config.activation_and_window import HardWiredGelu
from streamconv.models.config.checks import flag, quotient, same_as, times
from streamconv.models.config.settings import NEVER, TOKENS, Entry, Fixed, Gives, Implied, Size, Tied
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HfTensor, HuggingFace, linear
from streamconv.models.mechanisms import ALIBI, BIASES, EMBEDDING_NORM, LAYERNORM, PLAIN_MLP
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Parameter, Section

_LAYER = "transformer.h.{layer}"
_NORM = "transformer.word_embeddings_layernorm"

# transformers ``models/bloom/configuration_bloom.py``. slow_but_exact and pretraining_tp change how the
# model computes, not what.
# ALiBi needs no argument here: only bigscience's fork has it, as an enum (``megatron/enums.py``).
_SETTINGS = (
    Size(entry="hidden_size", size="hidden", arg="hidden_size", default=64, also=("n_embed",)),
    Size(entry="n_layer", size="num_layers", arg="num_layers", default=2, also=("num_hidden_layers",)),
    Size(entry="n_head", size="heads", arg="num_attention_heads", default=8, also=("num_attention_heads",)),
    Implied("ffn", "ffn_hidden_size", times(4, "hidden_size"), ("hidden_size",), "4 x hidden_size"),
    Implied("head_dim", "kv_channels", quotient("hidden_size", "n_head"), ("hidden_size", "n_head"), "hidden / heads"),
    Implied("groups", "num_key_value_heads", same_as("n_head"), ("n_head",), "as many as heads"),
    Entry(entry="layer_norm_epsilon", arg="layernorm_epsilon", default=1e-5),
    HardWiredGelu(),
    Entry(
        entry="apply_residual_connection_post_layernorm",
        arg="apply_residual_connection_post_layernorm",
        default=False,
        check=flag,
    ),
    Entry(entry="hidden_dropout", arg="hidden_dropout", default=0.0, matters=False),
    Entry(entry="attention_dropout", arg="attention_dropout", default=0.0, matters=False),
    Entry(entry="initializer_range", arg="init_method_std", default=0.02, matters=False),
    Tied(default=True),
    Fixed("normalization", "layernorm"),
    Fixed("swiglu", False),
    Fixed("add_bias_linear", True),
    Fixed("embed_layernorm", True),
    Fixed("use_rotary_position_embeddings", False),
    Gives("add_position_embedding", False),
    *NEVER,
    *TOKENS,
)

FAMILY = ModelFamily(
    name="bloom",
    title="BLOOM",
    mechanisms=frozenset({ALIBI, EMBEDDING_NORM, LAYERNORM, PLAIN_MLP, BIASES}),
    parameters=(
        words(),
        Parameter(Section.EMBEDDING, "word_embeddings.norm.weight", ("hidden",)),
        Parameter(Section.EMBEDDING, "word_embeddings.norm.bias", ("hidden",)),
        *LAYER_NORM_BLOCK,
        *FINAL_NORM,
    ),
    huggingface=HuggingFace(
        model_type="bloom",
        architecture="BloomForCausalLM",
        prefix="transformer.",
        tensors=(
            HfTensor("transformer.word_embeddings.weight", Section.EMBEDDING, "word_embeddings.weight"),
            HfTensor(f"{_NORM}.weight", Section.EMBEDDING, "word_embeddings.norm.weight"),
            HfTensor(f"{_NORM}.bias", Section.EMBEDDING, "word_embeddings.norm.bias"),
            *linear(f"{_LAYER}.input_layernorm", "input_layernorm"),
            *linear(f"{_LAYER}.self_attention.query_key_value", "self_attention.query_key_value"),
            *linear(f"{_LAYER}.self_attention.dense", "self_attention.dense"),
            *linear(f"{_LAYER}.post_attention_layernorm", "post_attention_layernorm"),
            *linear(f"{_LAYER}.mlp.dense_h_to_4h", "mlp.dense_h_to_4h"),
            *linear(f"{_LAYER}.mlp.dense_4h_to_h", "mlp.dense_4h_to_h"),
            HfTensor("transformer.ln_f.weight", Section.FINAL_NORM, "weight"),
            HfTensor("transformer.ln_f.bias", Section.FINAL_NORM, "bias"),
        ),
        qkv=QkvLayout.INTERLEAVED,
        settings=_SETTINGS,
        keeps_padding=True,
    ),
)
