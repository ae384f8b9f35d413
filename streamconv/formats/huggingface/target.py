"""A Hugging Face model folder as a target: safetensors in shards, their index, and the configuration.

config.json is the commit record: without it nothing loads the folder.
"""

from __future__ import annotations

from streamconv.containers.safetensors.writer import plan_safetensors_file
from streamconv.core.layout import FIRST_RANK
from streamconv.formats.common.adapter_files import ADAPTER_CONFIG
from streamconv.formats.common.model_shards import indexed, json_text, shard_names, shards_of
from streamconv.formats.huggingface.configuration import dtype_name
from streamconv.formats.huggingface.names import CONFIG, GENERATION, INDEX_SUFFIX, WEIGHTS, HfNames
from streamconv.formats.huggingface.options import HuggingFaceOptions
from streamconv.formats.huggingface.refusals import refusal
from streamconv.formats.source import Fact
from streamconv.formats.target import TargetFile, TargetFiles, TargetFormat, TargetModel
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
    ADAPTER_CONFIG,
    "adapter_model*",
)


def lay_out(model: TargetModel[HuggingFaceOptions]) -> TargetFiles:
    """The shards, the index, the configuration, and facts about the result."""
    orders = RowOrders(qkv=model.family.huggingface.qkv)
    names = HfNames(model.family)
    slots = list(names.slots(model.sizes.num_layers, has_head=model.has_head))
    sized = [(name, slot, model.tensor_of(slot, orders)) for name, slot in slots]
    shards = shards_of(
        ((name, slot, tensor.nbytes) for name, slot, tensor in sized), parse_size(model.options.max_shard_size)
    )
    paths = shard_names(WEIGHTS[0], len(shards))
    files = [
        TargetFile(path, plan_safetensors_file, FIRST_RANK, shard, "")
        for path, shard in zip(paths, shards, strict=True)
    ]
    written = config_of(
        model.family,
        model.sizes,
        args=model.args if model.config is None else None,
        config=model.config,
        supplied=model.supplied,
        dtype_name=dtype_name([tensor.dtype.name for _, _, tensor in sized if tensor.dtype.is_floating], model.config),
        has_head=model.has_head,
    )
    small = {GENERATION: json_text(written.generation_config)}
    if len(shards) > 1:
        total = sum(tensor.nbytes for _, _, tensor in sized)
        small[WEIGHTS[0] + INDEX_SUFFIX] = indexed(paths, shards, total)
    return TargetFiles(
        files=tuple(files),
        texts={CONFIG: json_text(written.config)},
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


TARGET = TargetFormat("huggingface", lay_out, refusal, HuggingFaceOptions)
