"""The training arguments that are written to a checkpoint: the steps that the targets of all Megatrons share."""

from __future__ import annotations

from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.writer import is_plain
from streamconv.formats.options import TrainingOptions
from streamconv.formats.target import TargetModel

__all__ = ["carried_args"]


def carried_args(model: TargetModel[TrainingOptions]) -> tuple[dict[str, Any], list[str]]:
    """The source's arguments with the target's sizes and dtype, and the names of those that are not plain data.

    If the source has no arguments, the known sizes are used instead.
    """
    sizes, layout = model.sizes, model.layout
    known = {
        "num_layers": sizes.num_layers,
        "hidden_size": sizes.hidden,
        "ffn_hidden_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
    }
    stand_in = {name: value for name, value in known.items() if value is not None}
    source = stand_in if model.args is None else model.args
    kept = {name: value for name, value in source.items() if is_plain(value)}
    dropped = sorted(set(source) - set(kept))
    kept["tensor_model_parallel_size"] = layout.tp
    kept["pipeline_model_parallel_size"] = layout.pp
    kept["padded_vocab_size"] = sizes.vocab
    # Megatron-LM's first stage may hold the embedding alone; the transformer's stages are then one fewer.
    if "standalone_embedding_stage" in kept:
        kept["standalone_embedding_stage"] = layout.stages[0] == 0
    if "transformer_pipeline_model_parallel_size" in kept:
        alone = bool(kept.get("standalone_embedding_stage"))
        kept["transformer_pipeline_model_parallel_size"] = layout.pp - alone
    if model.dtype is not None:
        name = model.dtype.name
        kept |= {"fp16": name == "float16", "bf16": name == "bfloat16", "params_dtype": Global("torch", name)}
    if model.options.for_release:
        kept |= {"consumed_train_samples": 0, "consumed_valid_samples": 0}
    return kept, dropped
