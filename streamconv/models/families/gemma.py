"""Gemma 1: Llama's parameters, with other functions around them.

The gate is GELU's tanh approximation, norms multiply by 1 + weight, and the embedding is multiplied by sqrt(hidden),
rounded to its dtype, before the first block; the head, which is tied to it, is not. transformers:
``models/gemma/modeling_gemma.py`` (``GemmaMLP``, ``GemmaRMSNorm``, ``GemmaTextScaledWordEmbedding``).
"""

from __future__ import annotations

from streamconv.models.config.rope import Rope
from streamconv.models.config.settings import NEVER, TOKENS, Constant, Entry, Fixed, Size, Tied
from streamconv.models.config.sizes import usual_sizes
from streamconv.models.families.llama import PARAMETERS, tensors
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HuggingFace
from streamconv.models.mechanisms import (
    GEGLU,
    GROUPED_HEADS,
    HEAD_SIZE,
    NO_BIASES,
    NORMS_LESS_ONE,
    RMSNORM,
    ROTARY,
    SCALED_EMBEDDING,
)
from streamconv.models.orders import QkvLayout

# transformers ``models/gemma/configuration_gemma.py``, which reads gelu as the tanh approximation too: the first
# published configurations have it.
_SETTINGS = (
    *usual_sizes(
        hidden=3072,
        layers=28,
        heads=16,
        ffn=24576,
        positions=8192,
        per_head=(
            Size(entry="num_key_value_heads", size="groups", arg="num_key_value_heads", default=16),
            Size(entry="head_dim", size="head_dim", arg="kv_channels", default=256),
        ),
    ),
    Entry(entry="rms_norm_eps", arg="layernorm_epsilon", default=1e-6),
    Rope(),
    Constant("hidden_act", "gelu_pytorch_tanh", alike=("gelu", "gelu_new", "gelu_fast")),
    Constant("attention_bias", False),
    Constant("use_bidirectional_attention", None, alike=(False,)),
    Entry(entry="attention_dropout", arg="attention_dropout", default=0.0, matters=False),
    Entry(entry="initializer_range", arg="init_method_std", default=0.02, matters=False),
    Tied(default=True),
    Fixed("normalization", "rmsnorm"),
    Fixed("apply_layernorm_1p", True),
    Fixed("swiglu", False),
    Fixed("add_bias_linear", False),
    *(row for row in NEVER if row.arg != "apply_layernorm_1p"),
    *TOKENS,
)

FAMILY = ModelFamily(
    name="gemma",
    title="Gemma",
    mechanisms=frozenset(
        {ROTARY, RMSNORM, NORMS_LESS_ONE, GEGLU, SCALED_EMBEDDING, NO_BIASES, GROUPED_HEADS, HEAD_SIZE}
    ),
    parameters=PARAMETERS,
    huggingface=HuggingFace(
        model_type="gemma",
        architecture="GemmaForCausalLM",
        prefix="model.",
        tensors=tuple(tensors()),
        qkv=QkvLayout.BLOCKS,
        settings=_SETTINGS,
    ),
    only_named=True,
)
