"""Phi-3, 3.5 and 4: Llama with fused queries, keys and values, and a fused gate.

``qkv_proj`` is all queries, then all keys, then all values, ``gate_up_proj`` the gate, then what it gates. Phi-4-mini
rotates a part of each head. Models of longer context scale their positions (longrope), which no Megatron can.
transformers: ``models/phi3/modeling_phi3.py`` (``Phi3Attention``, ``Phi3MLP``).
"""

from __future__ import annotations

from collections.abc import Iterator

from streamconv.models.config.activation_and_window import Window
from streamconv.models.config.checks import count
from streamconv.models.config.rope import Rope
from streamconv.models.config.settings import NEVER, TOKENS, Constant, Entry, Fixed, Gives, Tied
from streamconv.models.config.sizes import head_sizes, usual_sizes
from streamconv.models.families.llama import PARAMETERS
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HfTensor, HuggingFace, linear
from streamconv.models.mechanisms import GROUPED_HEADS, HEAD_SIZE, NO_BIASES, PARTIAL_ROTARY, RMSNORM, ROTARY, SWIGLU
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Section

_LAYER = "model.layers.{layer}"

# transformers ``models/phi3/configuration_phi3.py``. embd_pdrop and resid_pdrop are one argument; the latter counts.
# original_max_position_embeddings is used by longrope alone. The class has no head_dim, but the model reads one.
_SETTINGS = (
    *usual_sizes(hidden=3072, layers=32, heads=32, ffn=8192, positions=4096, per_head=head_sizes()),
    Entry(entry="rms_norm_eps", arg="layernorm_epsilon", default=1e-5),
    Rope(part="partial_rotary_factor"),
    Entry(entry="original_max_position_embeddings", arg=None, default=4096, check=count, matters=False),
    Window(default=None),
    Constant("hidden_act", "silu", alike=("swish",)),
    Entry(entry="embd_pdrop", arg="hidden_dropout", default=0.0, matters=False),
    Entry(entry="resid_pdrop", arg="hidden_dropout", default=0.0, matters=False),
    Entry(entry="attention_dropout", arg="attention_dropout", default=0.0, matters=False),
    Entry(entry="initializer_range", arg="init_method_std", default=0.02, matters=False),
    Tied(default=False),
    Fixed("normalization", "rmsnorm"),
    Fixed("add_bias_linear", False),
    Fixed("apply_residual_connection_post_layernorm", False),
    Gives("swiglu", True),
    *NEVER,
    *TOKENS,
)


def _tensors() -> Iterator[HfTensor]:
    yield HfTensor("model.embed_tokens.weight", Section.EMBEDDING, "word_embeddings.weight")
    yield from linear(f"{_LAYER}.input_layernorm", "input_layernorm", bias=False)
    yield from linear(f"{_LAYER}.self_attn.qkv_proj", "self_attention.query_key_value", bias=False)
    yield from linear(f"{_LAYER}.self_attn.o_proj", "self_attention.dense", bias=False)
    yield from linear(f"{_LAYER}.post_attention_layernorm", "post_attention_layernorm", bias=False)
    yield from linear(f"{_LAYER}.mlp.gate_up_proj", "mlp.dense_h_to_4h", bias=False)
    yield from linear(f"{_LAYER}.mlp.down_proj", "mlp.dense_4h_to_h", bias=False)
    yield HfTensor("model.norm.weight", Section.FINAL_NORM, "weight")
    yield HfTensor("lm_head.weight", Section.HEAD, "lm_head.weight")


FAMILY = ModelFamily(
    name="phi3",
    title="Phi-3",
    mechanisms=frozenset({ROTARY, PARTIAL_ROTARY, RMSNORM, SWIGLU, NO_BIASES, GROUPED_HEADS, HEAD_SIZE}),
    parameters=PARAMETERS,
    huggingface=HuggingFace(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        prefix="model.",
        tensors=tuple(_tensors()),
        qkv=QkvLayout.BLOCKS,
        settings=_SETTINGS,
    ),
    only_named=True,
)
