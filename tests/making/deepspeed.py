"""A labelled model as Megatron-DeepSpeed saves it: rows, keys and numbers of files as each fork has them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.making.cuts import ROWS
from tests.making.labelled import GLU, HEAD, QKV, WORDS, Labelled, part_of
from tests.making.megatron_ranks import State

Tensors = dict[str, torch.Tensor]
PARTS = ("query", "key", "value")
FINAL = "final_layernorm.weight"
TAG = "global_step7"


@dataclass(frozen=True)
class Rows:
    """How one rank's fused rows are stored.

    ``qkv`` is ``interleaved``, ``blocks``, or ``apart``: a query, and a key_value interleaved by group, which
    deepspeedai's fork had in 2023. ``glu`` names the half that comes first.
    """

    qkv: str = "interleaved"
    glu: str = "gate-up"


def fused(parts: Sequence[torch.Tensor], groups: int, order: str) -> torch.Tensor:
    """Query, key and value of one rank as one tensor."""
    if order == "blocks":
        return torch.cat([*parts])
    return torch.cat([part.reshape(groups, -1, *part.shape[1:]) for part in parts], 1).flatten(0, 1)


def attention(model: Labelled, name: str, place: tuple[int, int], order: str) -> Tensors:
    """What rank ``place[0]`` of ``place[1]`` has of query_key_value, by the keys of its layer."""
    rank, tp = place
    kind, groups = name.rpartition(".")[2], model.sizes.groups // tp
    parts = [part_of(model, name, part).chunk(tp)[rank] for part in PARTS]
    if order != "apart":
        return {f"{QKV}{kind}": fused(parts, groups, order)}
    pair = fused(parts[1:], groups, "interleaved")
    return {f"self_attention.query.{kind}": parts[0], f"self_attention.key_value.{kind}": pair}


def block(model: Labelled, layer: int, place: tuple[int, int], rows: Rows) -> Tensors:
    """One rank's tensors of a layer."""
    rank, tp = place
    found: Tensors = {}
    for key, tensor in model.of_layer(layer).items():
        name = f"layers.{layer}.{key}"
        if key.startswith(QKV):
            found |= attention(model, name, place, rows.qkv)
        elif key.startswith(GLU):
            found[key] = torch.cat([part_of(model, name, half).chunk(tp)[rank] for half in rows.glu.split("-")])
        else:
            found[key] = tensor.chunk(tp, 1)[rank] if key in ROWS else tensor
    return {key: tensor.clone() for key, tensor in found.items()}


def end(model: Labelled, name: str, place: tuple[int, int]) -> torch.Tensor:
    """One rank's part of a tensor that is in no layer."""
    rank, tp = place
    return model.tensors[name].clone() if "norm" in name else model.tensors[name].chunk(tp)[rank].clone()


def save_pipeline(
    root: Path, model: Labelled, tp: int, rows: Rows, args: Mapping[str, Any] | None, *, first: int = 2, final: int = 1
) -> Path:
    """A folder of the pipeline engine; ``first`` and ``final`` make the numbers of a fork."""
    folder = _started(root)
    last = first + model.sizes.num_layers - 1 + final
    for rank in range(tp):
        place = rank, tp
        files = {1: {WORDS: end(model, WORDS, place)}}
        files |= {first + layer: block(model, layer, place, rows) for layer in range(model.sizes.num_layers)}
        files |= {last: {"weight": end(model, FINAL, place)}, last + 1: {HEAD: end(model, HEAD, place)}}
        for index, tensors in files.items():
            torch.save(tensors, folder / f"layer_{index:02d}-model_{rank:02d}-model_states.pt")
        if args is not None:
            _save_rank(folder, rank, args, {"checkpoint_version": 3.0, "module": None})
    return root


def save_modules(root: Path, model: Labelled, tp: int, rows: Rows, args: Mapping[str, Any]) -> Path:
    """A folder of one module a rank, as runs without a pipeline have it."""
    folder = _started(root)
    for rank in range(tp):
        place = rank, tp
        layers = ((layer, block(model, layer, place, rows)) for layer in range(model.sizes.num_layers))
        encoder = {f"layers.{layer}.{key}": tensor for layer, tensors in layers for key, tensor in tensors.items()}
        module = {
            "embedding": {"word_embeddings": {"weight": end(model, WORDS, place)}},
            "encoder": {**encoder, FINAL: end(model, FINAL, place)},
            "output_layer": {"weight": end(model, HEAD, place)},
        }
        _save_rank(folder, rank, args, {"module": {"language_model": module}})
    return root


def _started(root: Path) -> Path:
    folder = root / TAG
    folder.mkdir(parents=True)
    (root / "latest").write_text(folder.name)
    return folder


def _save_rank(folder: Path, rank: int, args: Mapping[str, Any], state: State) -> None:
    state = {"args": Namespace(**args), "iteration": 7, **state}
    torch.save(state, folder / f"mp_rank_{rank:02d}_model_states.pt")
