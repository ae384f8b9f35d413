"""Qwen 3: Llama with an RMSNorm on each query's and each key's head, and a head size of its own.

Linear layers of the attention may have biases, those of the MLP only in Megatron.
transformers: ``models/qwen3/modeling_qwen3.py``.
"""

from __future__ import annotations

from streamconv.models.config.activation_and_window import Window
from streamconv.models.config.biases import Bias
from streamconv.models.config.settings import Fixed
from streamconv.models.families.llama import BIASED, MECHANISMS, PARAMETERS, settings, tensors
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HuggingFace
from streamconv.models.mechanisms import HEAD_NORMS
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Parameter, Section

_HEAD_NORMS = (
    Parameter(Section.LAYER, "self_attention.q_layernorm.weight", ("head_dim",)),
    Parameter(Section.LAYER, "self_attention.k_layernorm.weight", ("head_dim",)),
)

FAMILY = ModelFamily(
    name="qwen3",
    title="Qwen 3",
    mechanisms=MECHANISMS | {HEAD_NORMS},
    parameters=(*PARAMETERS, *_HEAD_NORMS),
    huggingface=HuggingFace(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        prefix="model.",
        tensors=tuple(tensors(head_norms=True)),
        widest=tuple(tensors(head_norms=True, qkv_bias=True, dense_bias=True)),
        qkv=QkvLayout.BLOCKS,
        settings=(
            *settings(positions=32768, ffn=22016, groups=32, head_dim=128, biases=("attention_bias",)),
            Window(default=4096, switched=True),
            Bias("attention_bias"),
            # An argument of Megatron-LM; neither Megatron-DeepSpeed fork has norms of heads.
            Fixed("qk_layernorm", True),
        ),
    ),
    widest=(*BIASED, *_HEAD_NORMS),
)
