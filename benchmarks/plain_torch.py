"""Convert a Megatron-DeepSpeed checkpoint to Megatron-LM's legacy layout the plain way: torch.load, cat, torch.save.

    python benchmarks/plain_torch.py SRC DST --tp 1 --pp 1 [--mmap] [--safetensors]

This is the job as it is usually written, and as bigscience's `deepspeed_to_megatron.py` does it: for each target rank,
load the layer files, put the shards of each tensor together, keep the result in a dictionary, save the dictionary.
When the tensor-parallel size stays, a rank's files are loaded and saved as they are. With --mmap the files are mapped
rather than read (`torch.load(mmap=True)`). With --safetensors each target rank is written as one safetensors file
(`model.safetensors`, names joined by dots) instead: another format, without the training arguments, and without the
head where it is the embedding that the same file holds. It knows BLOOM only, and exists to be measured against.
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from bloom_state import megatron_enums

State = OrderedDict[str, torch.Tensor]

QKV_AND_MLP = ("query_key_value.weight", "query_key_value.bias", "dense_h_to_4h.weight", "dense_h_to_4h.bias")
SPLIT_BY_ROWS = ("word_embeddings.weight", *QKV_AND_MLP)
SPLIT_BY_COLUMNS = ("self_attention.dense.weight", "dense_4h_to_h.weight")


def layer_numbers(folder: Path) -> list[int]:
    """Numbers of the layer files: the embedding's first, the final norm's last."""
    matches = (re.match(r"layer_(\d+)-model_00-", path.name) for path in folder.iterdir())
    return sorted(int(match.group(1)) for match in matches if match)


def load_layer(folder: Path, layer: int, shards: range, mmap: bool) -> State:
    """One layer with the given tensor-parallel shards put together."""
    names = [f"layer_{layer:02d}-model_{shard:02d}-model_states.pt" for shard in shards]
    states: list[State] = [torch.load(folder / name, map_location="cpu", mmap=mmap) for name in names]
    if len(states) == 1:
        return states[0]
    return State((name, merge(name, [state[name] for state in states])) for name in states[0])


def merge(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Put a tensor's shards together; a replicated tensor is taken from the first."""
    if name.endswith(SPLIT_BY_ROWS):
        return torch.cat(parts, dim=0)
    if name.endswith(SPLIT_BY_COLUMNS):
        return torch.cat(parts, dim=1)
    return parts[0]


def rank_model(folder: Path, shards: range, stage: int, stages: int, mmap: bool) -> dict[str, Any]:
    """The `model` entry of one target rank."""
    first, *blocks, last = layer_numbers(folder)
    count = len(blocks) // stages
    encoder = State()
    for local, layer in enumerate(blocks[stage * count : (stage + 1) * count]):
        state = load_layer(folder, layer, shards, mmap)
        encoder.update((f"layers.{local}.{name}", tensor) for name, tensor in state.items())
    model: dict[str, Any] = {"language_model": {"encoder": encoder}}
    if stage in (0, stages - 1):
        loaded = load_layer(folder, first, shards, mmap)
        embedding = State((name.removeprefix("word_embeddings."), tensor) for name, tensor in loaded.items())
        if stage == 0:
            model["language_model"]["embedding"] = {"word_embeddings": embedding}
        if stage == stages - 1:
            model["word_embeddings_for_head"] = embedding
    if stage == stages - 1:
        norm = load_layer(folder, last, shards, mmap)
        encoder.update((f"final_layernorm.{name}", tensor) for name, tensor in norm.items())
    return model


def flat(nested: dict[str, Any], prefix: str = "") -> State:
    """A rank's tensors by their joined names; of two that are one in memory, the first."""
    state = State()
    for name, value in nested.items():
        if isinstance(value, dict):
            state.update(flat(value, f"{prefix}{name}."))
        else:
            state[prefix + name] = value
    places: dict[int, str] = {}
    for name, tensor in state.items():
        places.setdefault(tensor.data_ptr(), name)
    return State((name, state[name]) for name in places.values())


def save(state: dict[str, Any], folder: Path, safetensors: bool) -> None:
    """Write one target rank."""
    if safetensors:
        from safetensors.torch import save_file

        save_file(flat(state["model"]), folder / "model.safetensors")
    else:
        torch.save(state, folder / "model_optim_rng.pt")


def convert(source: Path, target: Path, tp: int, pp: int, mmap: bool, safetensors: bool = False) -> None:
    """Convert the checkpoint that `latest` names."""
    folder = source / (source / "latest").read_text().strip()
    common = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    source_tp = common["args"].tensor_model_parallel_size
    layers = common["args"].num_layers
    if source_tp % tp or layers % pp:
        raise SystemExit(f"cannot convert tp {source_tp} to {tp}, or cut {layers} layers into {pp} equal stages")
    common["args"].tensor_model_parallel_size, common["args"].pipeline_model_parallel_size = tp, pp
    merged = source_tp // tp
    for rank in range(tp):
        for stage in range(pp):
            shards = range(rank * merged, (rank + 1) * merged)
            state = {key: common[key] for key in ("args", "checkpoint_version", "iteration")}
            state["model"] = rank_model(folder, shards, stage, pp, mmap)
            name = f"mp_rank_{rank:02d}" if pp == 1 else f"mp_rank_{rank:02d}_{stage:03d}"
            out = target / f"iter_{common['iteration']:07d}" / name
            out.mkdir(parents=True)
            save(state, out, safetensors)
    (target / "latest_checkpointed_iteration.txt").write_text(str(common["iteration"]))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Megatron-DeepSpeed checkpoint folder, with `latest` in it")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size to write (default: 1)")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel size to write (default: 1)")
    parser.add_argument("--mmap", action="store_true", help="map the files instead of reading them")
    parser.add_argument("--safetensors", action="store_true", help="write safetensors files")
    options = parser.parse_args()
    with megatron_enums():
        convert(options.source, options.target, options.tp, options.pp, options.mmap, options.safetensors)


if __name__ == "__main__":
    main()
