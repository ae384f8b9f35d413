"""Megatron-Core's names of a GPT model's parameters, translated to places in the model and back.

``megatron/core/models/gpt/gpt_layer_specs.py`` of Megatron-LM: with Transformer Engine the norms before the attention
and the MLP are part of the linear layer that follows (``self_attention.linear_qkv.layer_norm_weight``); with the local
spec they are modules of their own (``input_layernorm``, ``pre_mlp_layernorm``). ``torch_dist`` stores the names of
the former with both specs [``get_gpt_layer_local_spec``: ``sharded_state_dict_keys_map``].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from streamconv.models.parameter import Parameter, ParameterId, Section

__all__ = [
    "COMMON_FILE",
    "COMMON_STATE_OBJECT",
    "LINEARS",
    "MOST_LAYERS",
    "SPECS",
    "CoreName",
    "core_layer_key",
    "core_name",
    "is_stack",
    "name_in_stack",
    "parse_core_name",
    "stored_name",
]

COMMON_STATE_OBJECT = "common_state/shard_0_1"
COMMON_FILE = "common.pt"

_SAME = {
    "self_attention.query_key_value": "self_attention.linear_qkv",
    "self_attention.dense": "self_attention.linear_proj",
    "self_attention.q_layernorm": "self_attention.q_layernorm",
    "self_attention.k_layernorm": "self_attention.k_layernorm",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
}
_NORMS = {
    "te": {
        "input_layernorm": "self_attention.linear_qkv.layer_norm_",
        "post_attention_layernorm": "mlp.linear_fc1.layer_norm_",
    },
    "local": {"input_layernorm": "input_layernorm.", "post_attention_layernorm": "pre_mlp_layernorm."},
}
SPECS = tuple(_NORMS)
LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
"""The linear layers of a transformer layer, whose extra state (of FP8) has an entry in ``torch_dist``."""

MOST_LAYERS = 10_000
"""More layers than any model has, and few enough to list."""

# A stack of all layers along the first axis, under any prefix, since optimizer states have one
# [megatron/core/transformer/transformer_block.py:sharded_state_dict].
_ANY_STACK = re.compile(r"(.*\blayers)\.(?![0-9]+\.)(.+)", re.DOTALL)
_LAYER = re.compile(r"decoder\.layers\.([0-9]{1,9})\.(.+)", re.DOTALL)
_STACKED = "decoder.layers."
_FINAL_NORM = "decoder.final_layernorm."
_EMBEDDING = "embedding."
_HEAD = "output_layer.weight"


def core_layer_key(key: str, spec: str) -> str:
    """The key of a layer in Megatron-Core: ``mlp.linear_fc1.weight`` of ``mlp.dense_h_to_4h.weight``."""
    module, _, leaf = key.rpartition(".")
    norm = _NORMS[spec].get(module)
    return f"{_SAME[module]}.{leaf}" if norm is None else norm + leaf


_KEYS: Mapping[str, tuple[str, str | None]] = {
    core_layer_key(f"{module}.{leaf}", spec): (f"{module}.{leaf}", spec if module in _NORMS[spec] else None)
    for spec in SPECS
    for module in (*_SAME, *_NORMS[spec])
    for leaf in ("weight", "bias")
}


@dataclass(frozen=True, slots=True)
class CoreName:
    """A parsed name: its place, the layer number in the name (None if all layers are stacked), and the spec (None if
    the name is the same in both).
    """

    place: ParameterId
    layer: int | None
    spec: str | None

    @property
    def is_stack(self) -> bool:
        """Whether the tensor stacks all layers of a parameter."""
        return self.place.section is Section.LAYER and self.layer is None


def core_name(parameter: Parameter, layer: int | None, spec: str) -> str:
    """The name of a parameter; with ``layer`` None that of the stack of all layers."""
    if parameter.section is Section.LAYER:
        number = "" if layer is None else f"{layer}."
        return f"{_STACKED}{number}{core_layer_key(parameter.key, spec)}"
    if parameter.section is Section.FINAL_NORM:
        return _FINAL_NORM + parameter.key
    return _HEAD if parameter.section is Section.HEAD else _EMBEDDING + parameter.key


def stored_name(parameter: ParameterId, spec: str) -> str:
    """The name of one parameter of a model, its layer numbered over the whole model."""
    return core_name(Parameter(parameter.section, parameter.key, ()), parameter.layer, spec)


def is_stack(name: str) -> bool:
    """Whether a name is that of a stack of all layers, of a parameter or of optimizer state."""
    return _ANY_STACK.fullmatch(name) is not None


def name_in_stack(name: str, layer: int) -> str:
    """The name of one layer of a stack: ``decoder.layers.3.mlp.linear_fc1.weight``."""
    return _ANY_STACK.sub(rf"\g<1>.{layer}.\g<2>", name)


def parse_core_name(name: str) -> CoreName | None:
    """The parsed name, None if it is no parameter of a GPT model."""
    if name == _HEAD:
        return CoreName(ParameterId(Section.HEAD, -1, "lm_head.weight"), None, None)
    if name.startswith(_EMBEDDING):
        return CoreName(ParameterId(Section.EMBEDDING, -1, name.removeprefix(_EMBEDDING)), None, None)
    if name.startswith(_FINAL_NORM):
        return CoreName(ParameterId(Section.FINAL_NORM, -1, name.removeprefix(_FINAL_NORM)), None, None)
    if not name.startswith(_STACKED):
        return None
    match = _LAYER.fullmatch(name)
    layer, key = (int(match[1]), match[2]) if match else (None, name.removeprefix(_STACKED))
    if key not in _KEYS:
        return None
    ours, spec = _KEYS[key]
    return CoreName(ParameterId(Section.LAYER, -1 if layer is None else layer, ours), layer, spec)
