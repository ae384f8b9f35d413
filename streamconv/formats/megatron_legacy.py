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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.families.base import Section
from streamconv.files.pickle_writer import is_plain
from streamconv.files.safe_pickle import Global
from streamconv.formats.base import Fact, Slot, TargetFile, TargetFiles, TargetFormat, TargetModel
from streamconv.parallel import ParallelLayout

__all__ = ["DIALECTS", "TARGET", "Dialect", "file_tree", "lay_out", "rank_path", "target_args"]

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
        "from core_v0.6 with --transformer-impl local; Megatron-DeepSpeed without DeepSpeed, bigscience's fork and "
        "deepspeedai's before 2024-12 (since then it reads query_key_value in another order)",
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


def rank_path(iteration: int, layout: ParallelLayout, tp_rank: int, stage: int) -> str:
    """``iter_0000003/mp_rank_01_002/model_optim_rng.pt``; the stage is named only with PP > 1."""
    suffix = f"_{stage:03d}" if layout.pp > 1 else ""
    return f"iter_{iteration:07d}/mp_rank_{tp_rank:02d}{suffix}/{ARCHIVE}.pt"


def lay_out(model: TargetModel) -> TargetFiles:
    """Every rank's file, the tracker, and what should be known of the result."""
    dialect = DIALECTS[model.dialect]
    entries: dict[str, Any] = {"iteration": model.iteration}
    facts = [
        Fact(f"names of {dialect.name}", dialect.loads_in if model.family.name != "bloom" else model.family.runs_in),
        Fact("parameters only", "optimizer, scheduler and random number state stay behind"),
    ]
    if model.args is None and model.sizes.heads is None:
        # Megatron compares the number of heads and stops where args lack it; without args it compares nothing.
        facts.append(Fact("no args", "the source has none, and the number of heads is not known"))
    elif model.keep_args:
        entries["args"], dropped = target_args(model)
        if dropped:
            facts.append(Fact(f"left out of args: {', '.join(dropped)}", "not plain data"))
    layout = model.layout
    trees = [file_tree(model, dialect, stage, entries) for stage in range(layout.pp)]
    files = tuple(
        TargetFile(rank_path(model.iteration, layout, rank, stage), ARCHIVE, rank, stage, trees[stage], "model")
        for rank in range(layout.tp)
        for stage in range(layout.pp)
    )
    return TargetFiles(files, {TRACKER: str(model.iteration)}, tuple(facts), tuple(_cautions(model)))


def _cautions(model: TargetModel) -> Iterator[str]:
    if len(set(model.layout.stages)) > 1:
        yield "stages of unequal length: Megatron-LM divides layers evenly over stages and loads no others"
    if model.iteration == 0:
        yield "iteration 0: Megatron-LM takes a tracker of 0 for an error until core_v0.16; say --iteration 1 for it"
    if model.keep_args and (model.args or {}).get("position_embedding_type") is not None:
        yield (
            "args.position_embedding_type is an enum of bigscience's code and is left out; its own loader compares it "
            "and stops: write for that loader with --no-args"
        )
    if model.family.name == "bloom" and model.dialect != "2021":
        yield "only bigscience's fork runs BLOOM, and it reads the names of 2021 alone"


def file_tree(model: TargetModel, dialect: Dialect, stage: int, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of one stage with :class:`Slot` leaves; it is the same for each tensor-parallel rank.

    Args:
        model: what is laid out.
        dialect: the names.
        stage: which pipeline stage.
        entries: the entries beside ``model`` (iteration, args).
    """
    family, layout = model.family, model.layout
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
    tree: dict[str, Any] = {"language_model": language_model}
    if last:
        for parameter in family.parameters:
            if parameter.section is Section.FINAL_NORM:
                key = dialect.encoder_key(f"final_layernorm.{parameter.key}")
                encoder[key] = Slot(Section.FINAL_NORM, -1, parameter.key)
        if model.has_head:
            language_model["output_layer"] = OrderedDict(weight=Slot(Section.HEAD, -1, "lm_head.weight"))
        elif layout.pp > 1 or dialect.head_copy_always:
            weight = Slot(Section.EMBEDDING, -1, "word_embeddings.weight")
            tree["word_embeddings_for_head"] = OrderedDict(weight=weight)
    return {"model": tree, "checkpoint_version": CHECKPOINT_VERSION, **entries}


def target_args(model: TargetModel) -> tuple[argparse.Namespace, list[str]]:
    """The training arguments as the target needs them, and the names of those that are not plain data.

    Without arguments in the source, the sizes that are known stand in.
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
    # Readers take it for evidence of rows of [3, heads, head_dim], which are not written.
    kept.pop("ds_sequence_parallel_fpdt", None)
    if model.dtype is not None:
        name = model.dtype.name
        kept |= {"fp16": name == "float16", "bf16": name == "bfloat16", "params_dtype": Global("torch", name)}
    if model.for_release:
        kept |= {"consumed_train_samples": 0, "consumed_valid_samples": 0}
    namespace = argparse.Namespace()
    vars(namespace).update(kept)
    return namespace, dropped


TARGET = TargetFormat("megatron-legacy", tuple(DIALECTS), lay_out)
