"""GPT-NeoX's names of parameters, and the numbers of its layer files."""

from __future__ import annotations

from streamconv.models.parameter import Section

__all__ = ["BLOCK_MODULES", "FIRST_BLOCK", "OUTSIDE_BLOCKS", "ROTARY_BUFFER", "names_of_block"]

FIRST_BLOCK = 2
"""The number of the first block's layer file; the embedding's is 0, and layer 1 has no parameters."""

# Module of a block -> Megatron's name; ``linear1`` and ``linear2`` exist since 0d4bdb96 (2024-09).
BLOCK_MODULES = {
    "input_layernorm": "input_layernorm",
    "attention.query_key_value": "self_attention.query_key_value",
    "attention.dense": "self_attention.dense",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_h_to_4h": "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h": "mlp.dense_4h_to_h",
    "mlp.linear1": "mlp.dense_h_to_4h",
    "mlp.linear2": "mlp.dense_4h_to_h",
}
OUTSIDE_BLOCKS = {
    "word_embeddings.weight": (Section.EMBEDDING, "word_embeddings.weight"),
    "norm.weight": (Section.FINAL_NORM, "weight"),
    "norm.bias": (Section.FINAL_NORM, "bias"),
    "final_linear.weight": (Section.HEAD, "lm_head.weight"),
}
# Saved by runs before persistent=False, and afterwards by runs with rotary_save_freqs_buffer.
ROTARY_BUFFER = "attention.rotary_emb.inv_freq"


def names_of_block(*, before_2024_09: bool) -> dict[str, str]:
    """Megatron's names of a block's modules -> the names in one version of GPT-NeoX."""
    left_out = ("mlp.linear1", "mlp.linear2") if before_2024_09 else ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    return {ours: name for name, ours in BLOCK_MODULES.items() if name not in left_out}
