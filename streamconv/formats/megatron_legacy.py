"""Megatron-LM's legacy checkpoint: ``iter_*/mp_rank_*/model_optim_rng.pt`` with a nested ``language_model``.

The layout is what bigscience's ``tools/convert_checkpoint/deepspeed_to_megatron.py`` writes: ``embedding`` nested by
name, ``encoder`` flat, ``word_embeddings_for_head`` beside ``language_model``. QKV rows are those of
``checkpoint_version`` 3.0, ``[np, 3, hn]``.

That script fails on BLOOM's embedding norm. Where it belongs is what bigscience's model says: beside the weight in
``embedding``, and not in the head's copy, which its last stage loads strictly
[``megatron/mpu/layers.py:VocabParallelEmbedding``, since dd06ea32]. The names of 2021 load in every release: since
4c83dd72f5 (2023-09) Megatron-LM maps ``layernorm`` to ``norm`` when it loads.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.dtypes import DType
from streamconv.families.base import ModelFamily, ModelSizes, Section
from streamconv.files.pickle_writer import is_plain
from streamconv.files.safe_pickle import Global
from streamconv.parallel import ParallelLayout

__all__ = ["ARCHIVE", "DIALECTS", "TRACKER", "Dialect", "Slot", "file_tree", "rank_path", "target_args"]

TRACKER = "latest_checkpointed_iteration.txt"
ARCHIVE = "model_optim_rng"
CHECKPOINT_VERSION = 3.0


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of the two sets of names that Megatron-LM's legacy model has had."""

    name: str
    norms: Mapping[str, str]
    head_copy_always: bool
    loads_in: str

    def encoder_key(self, key: str) -> str:
        """A key of ``encoder`` in this dialect."""
        module, _, leaf = key.rpartition(".")
        head, _, last = module.rpartition(".")
        return ".".join(part for part in (head, self.norms.get(last, last), leaf) if part)


DIALECTS = {
    "2021": Dialect(
        "2021",
        {},
        head_copy_always=True,
        loads_in="NVIDIA/Megatron-LM v2.3 (2021) up to core_v0.17, from core_v0.8 with --use-legacy-models, "
        "from core_v0.6 with --transformer-impl local; Megatron-DeepSpeed, both forks, without DeepSpeed",
    ),
    "2023-09": Dialect(
        "2023-09",
        {
            "input_layernorm": "input_norm",
            "post_attention_layernorm": "post_attention_norm",
            "final_layernorm": "final_norm",
        },
        head_copy_always=False,
        loads_in="NVIDIA/Megatron-LM core_v0.4 (2023-12) up to core_v0.17, from core_v0.8 with --use-legacy-models, "
        "from core_v0.6 with --transformer-impl local; no Megatron-DeepSpeed",
    ),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor's place in a tree that is still to be laid out."""

    section: Section
    layer: int
    key: str


def rank_path(iteration: int, layout: ParallelLayout, tp_rank: int, stage: int) -> str:
    """``iter_0000003/mp_rank_01_002/model_optim_rng.pt``; the stage is named only with PP > 1."""
    suffix = f"_{stage:03d}" if layout.pp > 1 else ""
    return f"iter_{iteration:07d}/mp_rank_{tp_rank:02d}{suffix}/{ARCHIVE}.pt"


def file_tree(
    family: ModelFamily,
    has_head: bool,
    layout: ParallelLayout,
    stage: int,
    dialect: Dialect,
    entries: Mapping[str, Any],
) -> dict[str, Any]:
    """The state dict of one stage with :class:`Slot` leaves; it is the same for each tensor-parallel rank.

    Args:
        family: the model's parameters.
        has_head: whether the model has an output layer of its own.
        layout: the target's parallel layout.
        stage: which pipeline stage.
        dialect: the names.
        entries: the entries beside ``model`` (iteration, args).
    """
    first, last = stage == 0, stage == layout.pp - 1
    embedding: OrderedDict[str, Any] = OrderedDict()
    encoder: OrderedDict[str, Any] = OrderedDict()
    words = [p for p in family.parameters if p.section is Section.EMBEDDING]
    if first:
        for parameter in words:
            module, _, key = parameter.key.partition(".")
            embedding.setdefault(module, {})[key] = Slot(Section.EMBEDDING, -1, parameter.key)
    for local, layer in enumerate(layout.layers_of(stage)):
        for parameter in family.parameters:
            if parameter.section is Section.LAYER:
                encoder[dialect.encoder_key(f"layers.{local}.{parameter.key}")] = Slot(
                    Section.LAYER, layer, parameter.key
                )
    language_model: dict[str, Any] = {"embedding": embedding, "encoder": encoder}
    model: dict[str, Any] = {"language_model": language_model}
    if last:
        for parameter in family.parameters:
            if parameter.section is Section.FINAL_NORM:
                key = dialect.encoder_key(f"final_layernorm.{parameter.key}")
                encoder[key] = Slot(Section.FINAL_NORM, -1, parameter.key)
        if has_head:
            language_model["output_layer"] = OrderedDict(weight=Slot(Section.HEAD, -1, "lm_head.weight"))
        elif layout.pp > 1 or dialect.head_copy_always:
            weight = Slot(Section.EMBEDDING, -1, "word_embeddings.weight")
            model["word_embeddings_for_head"] = OrderedDict(weight=weight)
    return {"model": model, "checkpoint_version": CHECKPOINT_VERSION, **entries}


def target_args(
    args: Mapping[str, Any] | None,
    sizes: ModelSizes,
    layout: ParallelLayout,
    dtype: DType | None,
    *,
    for_release: bool,
) -> tuple[argparse.Namespace, list[str]]:
    """The training arguments as the target needs them, and the names of those that are not plain data.

    Args:
        args: the source's arguments; without them the sizes that are known stand in.
        sizes: the model's, with the target's padded vocabulary.
        layout: the target's.
        dtype: what floating tensors are cast to, None if they stay.
        for_release: reset the counters of consumed samples.
    """
    known = {
        "num_layers": sizes.num_layers,
        "hidden_size": sizes.hidden,
        "ffn_hidden_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
    }
    source = args if args is not None else {name: value for name, value in known.items() if value is not None}
    kept = {name: value for name, value in source.items() if is_plain(value)}
    dropped = sorted(set(source) - set(kept))
    kept["tensor_model_parallel_size"] = layout.tp
    kept["pipeline_model_parallel_size"] = layout.pp
    kept["padded_vocab_size"] = sizes.vocab
    if "transformer_pipeline_model_parallel_size" in kept:
        kept["transformer_pipeline_model_parallel_size"] = layout.pp
    if dtype is not None:
        kept |= {"fp16": dtype.name == "float16", "bf16": dtype.name == "bfloat16"}
        kept["params_dtype"] = Global("torch", dtype.name)
    if for_release:
        kept |= {"consumed_train_samples": 0, "consumed_valid_samples": 0}
    return argparse.Namespace(**kept), dropped
