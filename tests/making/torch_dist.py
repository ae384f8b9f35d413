"""A labelled model as Megatron-Core's container ``torch_dist`` has it, written and read by torch itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.making.cuts import padded
from tests.making.labelled import HEAD, WORDS, Labelled
from tests.making.megatron_core import COPY, core_key
from tests.making.megatron_ranks import State, started


def whole_tensors(model: Labelled, multiple: int) -> dict[str, torch.Tensor]:
    """The tensors that ``torch_dist`` stores: the layers of a parameter in one, as Transformer Engine names it."""
    found: dict[str, torch.Tensor] = {
        f"embedding.{name}": tensor for name, tensor in model.tensors.items() if "_embeddings" in name
    }
    found |= {f"decoder.{name}": tensor for name, tensor in model.tensors.items() if name.startswith("final_layernorm")}
    found |= {COPY: model.tensors[HEAD]} if model.has_head else {}
    for key in model.of_layer(0):
        layers = [model.of_layer(layer)[key] for layer in range(model.sizes.num_layers)]
        found[f"decoder.layers.{core_key(key, 'te')}"] = torch.stack(layers)
    for name in (f"embedding.{WORDS}", COPY):
        found |= {name: padded(found[name], multiple)} if name in found else {}
    return found


def by_layer(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with a name for each layer."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder.layers."):
            key = name.removeprefix("decoder.layers.")
            found |= {f"decoder.layers.{layer}.{key}": one.clone() for layer, one in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def in_halves(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with names of their own for gate and up."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("linear_fc1.weight"):
            found |= {f"{name}_{half}": one for half, one in zip("wv", tensor.chunk(2, tensor.dim() - 2), strict=True)}
        else:
            found[name] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def save_dist(root: Path, tree: Mapping[str, Any], common: State | None) -> Path:
    """What torch itself writes of tensors and objects, with the other state in ``common.pt``."""
    import torch.distributed.checkpoint as dcp

    place = started(root)
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(dict(tree), storage_writer=dcp.FileSystemWriter(place), planner=planner, no_dist=True)
    (place / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    if common is not None:
        torch.save(common, place / "common.pt")
    return root


def read_dist(place: Path) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The tensors as torch itself reads them, and the names of the objects."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(place)
    known = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.full(entry.size, torch.nan, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found, set(known) - set(found)


def read_object(place: Path, name: str) -> Any:
    """An object as torch itself reads it."""
    import torch.distributed.checkpoint as dcp

    state = {name: None}
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.load(state, storage_reader=dcp.FileSystemReader(place), planner=planner, no_dist=True)
    return state[name]
