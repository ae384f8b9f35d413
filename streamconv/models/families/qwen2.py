"""Qwen 2 and 2.5: Llama with biases on queries, keys and values.

transformers: ``models/qwen2/modeling_qwen2.py``.
"""

from __future__ import annotations

from streamconv.models.blocks import RMS_NORM, block, head, words
from streamconv.models.config.activation_and_window import Window
from streamconv.models.config.settings import Fixed
from streamconv.models.families.llama import MECHANISMS, settings, tensors
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HuggingFace
from streamconv.models.mechanisms import NO_BIASES, QKV_BIASES
from streamconv.models.orders import QkvLayout

FAMILY = ModelFamily(
    name="qwen2",
    title="Qwen 2",
    mechanisms=MECHANISMS - {NO_BIASES} | {QKV_BIASES},
    parameters=(words(), *block(norm_bias=False, qkv_bias=True, bias=False, gated=True), *RMS_NORM, head()),
    huggingface=HuggingFace(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        prefix="model.",
        tensors=tuple(tensors(qkv_bias=True)),
        qkv=QkvLayout.BLOCKS,
        settings=(
            *settings(positions=32768, ffn=22016, groups=32),
            Window(default=4096, switched=True),
            # An argument of Megatron-LM; both Megatron-DeepSpeed forks have biases everywhere or nowhere.
            Fixed("add_qkv_bias", True),
        ),
    ),
)
