"""A labelled model as the files of Megatron-LM's legacy model have it, with the names of 2021."""

from __future__ import annotations

import torch

from tests.making.cuts import Cut, Rank, shard
from tests.making.labelled import HEAD, QKV, WORDS, Labelled, Sizes
from tests.making.megatron_ranks import State


def in_version(tensor: torch.Tensor, sizes: Sizes, version: int) -> torch.Tensor:
    """A rank's rows of query_key_value as a checkpoint_version orders them; in 0 and 1 heads have keys of their own."""
    if version >= 2:
        return tensor
    rows = tensor.unflatten(0, (-1, 3, sizes.head_dim))
    return (rows.transpose(0, 1) if version == 0 else rows.transpose(1, 2)).flatten(0, 2).contiguous()


def legacy_chunk(model: Labelled, cut: Cut, place: tuple[int, int, int], version: int) -> State:
    """One chunk, (rank, stage, chunk), of Megatron-LM's legacy model with the names of 2021."""
    rank, stage, chunk = place
    last = (stage, chunk) == (cut.pp - 1, cut.vpp - 1)

    def mine(name: str) -> torch.Tensor:
        tensor = shard(name, model.tensors[name], cut, rank, gated=model.sizes.gated)
        return in_version(tensor, model.sizes, version) if QKV in name else tensor

    encoder = {
        f"layers.{local}.{key}": mine(f"layers.{layer}.{key}")
        for local, layer in enumerate(cut.layers(stage, chunk))
        for key in model.of_layer(layer)
    }
    encoder |= {name: mine(name) for name in model.tensors if last and name.startswith("final_layernorm")}
    language_model: State = {"encoder": encoder}
    state: State = {"language_model": language_model}
    if (stage, chunk) == (0, 0):
        embedding: State = {}
        for name in (name for name in model.tensors if "_embeddings." in name):
            module, _, leaf = name.partition(".")
            embedding.setdefault(module, {})[leaf] = mine(name)
        language_model["embedding"] = embedding
    if last and model.has_head:
        language_model["output_layer"] = {"weight": mine(HEAD)}
    elif last and cut.pp > 1:
        state["word_embeddings_for_head"] = {"weight": mine(WORDS)}
    return state


def legacy_files(model: Labelled, cut: Cut, version: int = 3) -> dict[Rank, list[State]]:
    """Every chunk of every rank."""
    return {
        (rank, stage): [legacy_chunk(model, cut, (rank, stage, chunk), version) for chunk in range(cut.vpp)]
        for rank, stage in cut.ranks
    }
