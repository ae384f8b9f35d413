"""A labelled model as Megatron-Core's files for each rank have it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from tests.making.cuts import Cut, Rank, shard
from tests.making.labelled import HEAD, QKV, WORDS, Labelled, assert_same
from tests.making.megatron_ranks import all_tensors, chunks_of, read_ranks, tensors_of

COPY = "output_layer.weight"

# megatron/core/models/gpt/gpt_layer_specs.py
MODULES = {
    "self_attention.query_key_value.": "self_attention.linear_qkv.",
    "self_attention.dense.": "self_attention.linear_proj.",
    "mlp.dense_h_to_4h.": "mlp.linear_fc1.",
    "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
    "self_attention.q_layernorm.": "self_attention.q_layernorm.",
    "self_attention.k_layernorm.": "self_attention.k_layernorm.",
}
NORMS = {
    "te": {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "post_attention_layernorm.": "mlp.linear_fc1.layer_norm_",
    },
    "local": {"input_layernorm.": "input_layernorm.", "post_attention_layernorm.": "pre_mlp_layernorm."},
}
LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


def core_key(key: str, spec: str) -> str:
    """A layer's key in Megatron-Core."""
    for old, new in (MODULES | NORMS[spec]).items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise KeyError(key)


def core_chunk(model: Labelled, cut: Cut, rank: int, stage: int, chunk: int, spec: str) -> dict[str, torch.Tensor]:
    """The tensors of one chunk of a rank's model."""
    last = (stage, chunk) == (cut.pp - 1, cut.vpp - 1)
    found: dict[str, torch.Tensor] = {}

    def add(new: str, name: str) -> None:
        if name in model.tensors:
            found[new] = shard(name, model.tensors[name], cut, rank, gated=model.sizes.gated)

    if (stage, chunk) == (0, 0):
        add(f"embedding.{WORDS}", WORDS)
        add("embedding.position_embeddings.weight", "position_embeddings.weight")
    for local, layer in enumerate(cut.layers(stage, chunk)):
        for key in model.of_layer(layer):
            add(f"decoder.layers.{local}.{core_key(key, spec)}", f"layers.{layer}.{key}")
    if last:
        for leaf in ("weight", "bias"):
            add(f"decoder.final_layernorm.{leaf}", f"final_layernorm.{leaf}")
        if model.has_head or cut.pp > 1:
            add(COPY, HEAD if model.has_head else WORDS)
    return found


def core_files(model: Labelled, cut: Cut, spec: str = "te") -> dict[Rank, list[dict[str, torch.Tensor]]]:
    """The tensors of every chunk of every rank."""
    return {
        (rank, stage): [core_chunk(model, cut, rank, stage, chunk, spec) for chunk in range(cut.vpp)]
        for rank, stage in cut.ranks
    }


def core_args(model: Labelled, cut: Cut, **more: Any) -> Namespace:
    """Arguments as Megatron-LM keeps them, those that say what the model is."""
    sizes, keys = model.sizes, set(model.of_layer(0))
    return Namespace(
        **{
            "num_layers": sizes.num_layers,
            "hidden_size": sizes.hidden,
            "ffn_hidden_size": sizes.ffn,
            "num_attention_heads": sizes.heads,
            "kv_channels": sizes.head_dim,
            "group_query_attention": sizes.groups != sizes.heads,
            "num_query_groups": sizes.groups if sizes.groups != sizes.heads else 1,
            "max_position_embeddings": sizes.positions,
            "seq_length": sizes.positions,
            "padded_vocab_size": sizes.vocab + -sizes.vocab % (cut.multiple * cut.tp),
            "make_vocab_size_divisible_by": cut.multiple,
            "tensor_model_parallel_size": cut.tp,
            "pipeline_model_parallel_size": cut.pp,
            "virtual_pipeline_model_parallel_size": cut.vpp if cut.vpp > 1 else None,
            "normalization": "LayerNorm" if "input_layernorm.bias" in keys else "RMSNorm",
            "norm_epsilon": 1e-5,
            "swiglu": sizes.gated,
            "add_bias_linear": "self_attention.dense.bias" in keys,
            "add_qkv_bias": f"{QKV}bias" in keys,
            "qk_layernorm": "self_attention.q_layernorm.weight" in keys,
            "bias_gelu_fusion": not sizes.gated,
            "position_embedding_type": "learned_absolute" if model.has_positions else "rope",
            "rotary_base": 10000,
            "rotary_percent": 1.0,
            "untie_embeddings_and_output_weights": model.has_head,
            "num_experts": None,
            **more,
        }
    )


def check_ranks(root: Path, model: Labelled, cut: Cut, spec: str) -> None:
    """Each rank has the tensors that Megatron's model has there, and no others; layers of Transformer Engine have an
    entry for their extra state too.
    """
    expected = dict(all_tensors(core_files(model, cut, spec)))
    found = {place: chunks_of(state, cut.vpp) for place, state in read_ranks(root, cut).items()}
    for where, tensors in all_tensors(found):
        assert_same(tensors, expected[where], model, f"{cut} {where}")
    for (_, stage), chunks in found.items():
        for number, chunk in enumerate(chunks):
            extra = set(chunk) - set(tensors_of(chunk))
            assert extra >= extra_states(len(cut.layers(stage, number))) if spec == "te" else not extra


def extra_states(layers: int) -> set[str]:
    """What Transformer Engine's linear layers ask for besides their parameters."""
    return {f"decoder.layers.{layer}.{linear}._extra_state" for layer in range(layers) for linear in LINEARS}
