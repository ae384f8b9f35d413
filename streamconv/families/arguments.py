"""Training arguments of any fork, by deepspeedai's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LLAMA3_SCALING", "neutral_args"]

_ALIASES = {
    # Megatron-LM and Megatron-Core: megatron/training/arguments.py, megatron/core/transformer/transformer_config.py.
    "norm_epsilon": "layernorm_epsilon",
    "rotary_base": "rope_theta",
}
# megatron/enums.py of bigscience-workshop/Megatron-DeepSpeed: class PositionEmbeddingType.
_ROTARY = 1
# megatron/model/transformer.py:ParallelAttention there, with RotaryEmbedding's own base.
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The constants of Megatron-LM's ``use_rope_scaling`` [``rotary_pos_embedding.py:_apply_scaling``]."""

_BIGSCIENCE_ROPE = {"use_rotary_position_embeddings": True, "rope_theta": 10000, "rotary_percent": 1.0}


def neutral_args(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Training arguments by deepspeedai's names, whichever fork they are of; its own names stay beside them."""
    said = dict(args or {})
    for theirs, ours in _ALIASES.items():
        if said.get(ours) is None and said.get(theirs) is not None:
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
    if (window := _window(said.get("window_size"))) is not None:
        said["sliding_window"] = window
        del said["window_size"]
    return said


def _window(size: Any) -> int | None:
    """How many positions a Megatron-LM window lets attend, one's own included; None if it is no window of the past."""
    if not isinstance(size, tuple | list) or size[1:] not in ((0,), [0]) or not isinstance(size[0], int) or size[0] < 0:
        return None
    return size[0] + 1
