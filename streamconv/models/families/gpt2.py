"""GPT-2 and GPT-3: learned absolute positions, and a head that is tied to the embedding or its own.

transformers: ``models/gpt2/modeling_gpt2.py``; its matrices are ``Conv1D``, stored ``(in, out)``.
"""

from __future__ import annotations

from streamconv.models.blocks import FINAL_NORM, LAYER_NORM_BLOCK, head, words
from streamconv.models.config.activation_and_window import Activation
from streamconv.models.config.checks import quotient, same_as, times
from streamconv.models.config.settings import NEVER, TOKENS, Constant, Entry, Fixed, Implied, Size, Tied
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HfTensor, HuggingFace, linear
from streamconv.models.mechanisms import BIASES, LAYERNORM, LEARNED, PLAIN_MLP
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Parameter, Section

_LAYER = "transformer.h.{layer}"

# transformers ``models/gpt2/configuration_gpt2.py``. embd_pdrop and resid_pdrop are one argument; the latter counts.
_SETTINGS = (
    Size(entry="n_embd", size="hidden", arg="hidden_size", default=768, also=("hidden_size",)),
    Size(entry="n_layer", size="num_layers", arg="num_layers", default=12, also=("num_hidden_layers",)),
    Size(entry="n_head", size="heads", arg="num_attention_heads", default=12, also=("num_attention_heads",)),
    Size(entry="n_inner", size="ffn", arg="ffn_hidden_size", default=times(4, "n_embd")),
    Size(
        entry="n_positions",
        size="positions",
        arg="max_position_embeddings",
        default=1024,
        also=("max_position_embeddings",),
    ),
    Implied("head_dim", "kv_channels", quotient("n_embd", "n_head"), ("n_embd", "n_head"), "n_embd / n_head"),
    Implied("groups", "num_key_value_heads", same_as("n_head"), ("n_head",), "as many as heads"),
    Entry(entry="layer_norm_epsilon", arg="layernorm_epsilon", default=1e-5),
    Activation("activation_function", default="gelu_new"),
    Constant("scale_attn_weights", True),
    Constant("scale_attn_by_inverse_layer_idx", False),
    Constant("reorder_and_upcast_attn", False),
    Constant("add_cross_attention", False),
    Entry(entry="embd_pdrop", arg="hidden_dropout", default=0.1, matters=False),
    Entry(entry="resid_pdrop", arg="hidden_dropout", default=0.1, matters=False),
    Entry(entry="attn_pdrop", arg="attention_dropout", default=0.1, matters=False),
    Entry(entry="initializer_range", arg="init_method_std", default=0.02, matters=False),
    Tied(default=True),
    Fixed("normalization", "layernorm"),
    Fixed("swiglu", False),
    Fixed("add_bias_linear", True),
    Fixed("use_rotary_position_embeddings", False),
    Fixed("add_position_embedding", True),
    Fixed("apply_residual_connection_post_layernorm", False),
    *NEVER,
    *TOKENS,
)

FAMILY = ModelFamily(
    name="gpt",
    title="GPT",
    mechanisms=frozenset({LEARNED, LAYERNORM, PLAIN_MLP, BIASES}),
    parameters=(
        words(),
        Parameter(Section.EMBEDDING, "position_embeddings.weight", ("positions", "hidden")),
        *LAYER_NORM_BLOCK,
        *FINAL_NORM,
        head(),
    ),
    huggingface=HuggingFace(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        prefix="transformer.",
        tensors=(
            HfTensor("transformer.wte.weight", Section.EMBEDDING, "word_embeddings.weight"),
            HfTensor("transformer.wpe.weight", Section.EMBEDDING, "position_embeddings.weight"),
            *linear(f"{_LAYER}.ln_1", "input_layernorm"),
            *linear(f"{_LAYER}.attn.c_attn", "self_attention.query_key_value", transposed=True),
            *linear(f"{_LAYER}.attn.c_proj", "self_attention.dense", transposed=True),
            *linear(f"{_LAYER}.ln_2", "post_attention_layernorm"),
            *linear(f"{_LAYER}.mlp.c_fc", "mlp.dense_h_to_4h", transposed=True),
            *linear(f"{_LAYER}.mlp.c_proj", "mlp.dense_4h_to_h", transposed=True),
            HfTensor("transformer.ln_f.weight", Section.FINAL_NORM, "weight"),
            HfTensor("transformer.ln_f.bias", Section.FINAL_NORM, "bias"),
            HfTensor("lm_head.weight", Section.HEAD, "lm_head.weight"),
        ),
        qkv=QkvLayout.BLOCKS,
        settings=_SETTINGS,
    ),
)
