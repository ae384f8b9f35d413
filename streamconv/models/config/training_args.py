"""Training arguments of any fork, by deepspeedai's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LLAMA3_SCALING", "neutral_args"]

_ALIASES = {
    # Megatron-LM and Megatron-Core: megatron/training/arguments.py, megatron/core/transformer/transformer_config.py.
    "norm_epsilon": "layernorm_epsilon",
    "rotary_base": "rope_theta",
    # Since core_v0.16 arguments have the names of TransformerConfig's fields.
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
}
# megatron/enums.py of bigscience-workshop/Megatron-DeepSpeed: class PositionEmbeddingType.
_ROTARY = 1
# megatron/model/transformer.py:ParallelAttention there, with RotaryEmbedding's own base.
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The constants of Megatron-LM's ``use_rope_scaling`` [``rotary_pos_embedding.py:_apply_scaling``]."""

_BIGSCIENCE_ROPE = {"use_rotary_position_embeddings": True, "rope_theta": 10000, "rotary_percent": 1.0}


def neutral_args(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The training arguments of any fork by deepspeedai's names; the fork's own names are kept beside them."""
    said = dict(args or {})
    for theirs, ours in _ALIASES.items():
        if (said.get(ours) is None or said[ours] is False) and said.get(theirs) is not None:
            said[ours] = said[theirs]
    if said.get("num_key_value_heads") is None and "group_query_attention" in said:
        # num_query_groups is 1 by default, and counts only with the flag.
        which = "num_query_groups" if said["group_query_attention"] else "num_attention_heads"
        said["num_key_value_heads"] = said.get(which)
    if isinstance(said.get("normalization"), str):
        said["normalization"] = said["normalization"].lower()
    position = said.get("position_embedding_type")
    if isinstance(position, str):
        said["use_rotary_position_embeddings"] = position == "rope"
    elif getattr(position, "args", None) == (_ROTARY,):
        said.update({name: value for name, value in _BIGSCIENCE_ROPE.items() if said.get(name) is None})
    match said.get("window_size"):
        # The number of positions before a token and after it; Transformer Engine takes -1 as all of them.
        case [-1, 0 | -1]:
            del said["window_size"]
        case [int(before), 0] if before >= 0:
            said["sliding_window"] = before + 1
            del said["window_size"]
    return said
