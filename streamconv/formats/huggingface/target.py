"""A Hugging Face model folder as a target: safetensors in shards, their index, and the configuration.

Names and index: ``huggingface_hub/serialization/_base.py:split_state_dict_into_shards_factory``. Every name
contains the number of shards, so all are planned before the first is written. config.json is the commit record: without
it nothing loads the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streamconv.containers.safetensors.writer import plan_safetensors_file
from streamconv.core.layout import FIRST_RANK
from streamconv.formats.huggingface.names import CONFIG, GENERATION, INDEX_SUFFIX, WEIGHTS, HfNames
from streamconv.formats.huggingface.options import HuggingFaceOptions
from streamconv.formats.huggingface.refusals import refusal
from streamconv.formats.source import Fact
from streamconv.formats.target import Slot, TargetFile, TargetFiles, TargetFormat, TargetModel
from streamconv.memory.budget import parse_size
from streamconv.models.orders import RowOrders
from streamconv.models.translate import config_of

__all__ = ["TARGET", "lay_out"]

# An adapter would be loaded on top of the result.
_OWNED = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*",
    CONFIG,
    GENERATION,
    "adapter_config.json",
    "adapter_model*",
)


def lay_out(model: TargetModel[HuggingFaceOptions]) -> TargetFiles:
    """The shards, the index, the configuration, and facts about the result."""
    orders = RowOrders(qkv=model.family.huggingface.qkv)
    names = HfNames(model.family)
    slots = list(names.slots(model.sizes.num_layers, has_head=model.has_head))
    sized = [(name, slot, model.tensor_of(slot, orders)) for name, slot in slots]
    shards = _shards(
        ((name, slot, tensor.nbytes) for name, slot, tensor in sized), parse_size(model.options.max_shard_size)
    )
    files: list[TargetFile] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        path = WEIGHTS[0] if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append(TargetFile(path, plan_safetensors_file, FIRST_RANK, shard, ""))
        weight_map |= dict.fromkeys(shard, path)
    written = config_of(
        model.family,
        model.sizes,
        args=model.args if model.config is None else None,
        config=model.config,
        supplied=model.supplied,
        dtype_name=_dtype_name([tensor.dtype.name for _, _, tensor in sized if tensor.dtype.is_floating], model.config),
        has_head=model.has_head,
    )
    small = {GENERATION: _json(written.generation_config)}
    if len(shards) > 1:
        total = sum(tensor.nbytes for _, _, tensor in sized)
        small[WEIGHTS[0] + INDEX_SUFFIX] = _json({"metadata": {"total_size": total}, "weight_map": weight_map})
    return TargetFiles(
        files=tuple(files),
        texts={CONFIG: _json(written.config)},
        facts=(
            Fact(
                f"{len(shards)} shard{'s' if len(shards) > 1 else ''}",
                f"{model.family.huggingface.architecture}, safetensors",
            ),
            *(Fact(what, evidence) for what, evidence in written.notes),
            Fact("parameters only", "optimizer, scheduler and random number state stay behind"),
        ),
        warnings=written.warnings,
        orders=orders,
        small=small,
        owned=_OWNED,
    )


def _dtype_name(stored: Sequence[str], config: Mapping[str, Any] | None) -> str:
    """The dtype that the model is loaded in: of unlike ones that of the source's config.json, else the commonest."""
    own = {name for name in set(stored) if name in [(config or {}).get(entry) for entry in ("dtype", "torch_dtype")]}
    return own.pop() if len(own) == 1 else max(sorted(set(stored)), key=stored.count)


def _shards(tensors: Iterable[tuple[str, Slot, int]], most: int) -> list[dict[str, Slot]]:
    """The tensors in order, in shards of at most ``most`` bytes; a larger tensor is a shard by itself."""
    shards: list[dict[str, Slot]] = []
    size = 0
    for name, slot, nbytes in tensors:
        if not shards or size + nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = slot
        size += nbytes
    return shards


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


TARGET = TargetFormat("huggingface", lay_out, refusal, HuggingFaceOptions)
