"""Mistral: Llama's parameters, so only the configuration tells them apart. Some models attend in a sliding window.

transformers: ``models/mistral/modeling_mistral.py``.
"""

from __future__ import annotations

from streamconv.models.config.activation_and_window import Window
from streamconv.models.families.llama import MECHANISMS, PARAMETERS, settings, tensors
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HuggingFace
from streamconv.models.orders import QkvLayout

FAMILY = ModelFamily(
    name="mistral",
    title="Mistral",
    mechanisms=MECHANISMS,
    parameters=PARAMETERS,
    huggingface=HuggingFace(
        model_type="mistral",
        architecture="MistralForCausalLM",
        prefix="model.",
        tensors=tuple(tensors()),
        qkv=QkvLayout.BLOCKS,
        settings=(*settings(positions=131072, ffn=14336, groups=8), Window(default=4096)),
    ),
    only_named=True,
)
