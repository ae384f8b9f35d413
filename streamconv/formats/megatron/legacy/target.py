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
from functools import partial
from typing import Any

from streamconv.containers.pickles.writer import is_plain
from streamconv.containers.torch_save.zip_writer import plan_torch_file
from streamconv.core.errors import UnsupportedError
from streamconv.formats.common.carried_args import carried_args
from streamconv.formats.megatron.args import core_model_args
from streamconv.formats.megatron.folder import ARCHIVE, TRACKER, rank_path
from streamconv.formats.megatron.legacy.refusals import refusal
from streamconv.formats.recorded import RELEASE
from streamconv.formats.source import Fact
from streamconv.formats.target import Slot, TargetFile, TargetFiles, TargetFormat, TargetModel
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import Section

__all__ = ["DIALECTS", "TARGET", "Dialect", "lay_out"]

CHECKPOINT_VERSION = 3.0
_LLAMA_ARGS = (
    "normalization",
    "norm_epsilon",
    "swiglu",
    "position_embedding_type",
    "add_position_embedding",
    "add_bias_linear",
    "add_qkv_bias",
    "group_query_attention",
    "num_query_groups",
    "kv_channels",
    "untie_embeddings_and_output_weights",
)
_QKV_BIAS, _DENSE_BIAS = "self_attention.query_key_value.bias", "self_attention.dense.bias"


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


def loads_in(family: ModelFamily, dialect: Dialect) -> str:
    """Which code runs the result."""
    if family.positions == "alibi":
        return "bigscience-workshop/Megatron-DeepSpeed; NVIDIA/Megatron-LM has neither ALiBi nor the embedding norm"
    if family.norm == "rmsnorm":
        # RMSNorm came with 4dc0715204 (2023-09), biases on queries, keys and values alone with f6995e5c9b (2024-02).
        alone = {_QKV_BIAS, _DENSE_BIAS} & family.keys(Section.LAYER) == {_QKV_BIAS}
        since = "core_v0.6 (2024-03)" if alone else "core_v0.4 (2023-12)"
        return f"NVIDIA/Megatron-LM {since} up to core_v0.17, from core_v0.8 with --use-legacy-models"
    return dialect.loads_in


def lay_out(model: TargetModel) -> TargetFiles:
    """Every rank's file, the tracker, and what should be known of the result."""
    dialect = DIALECTS[model.dialect]
    _refuse_settings(model)
    entries: dict[str, Any] = {"iteration": model.iteration or 0}
    if model.vocab_size is not None:
        # Megatron-LM records the true size nowhere; readers of bigscience's entry find it here too.
        entries["checkpoint_info"] = {
            "padded_vocab_size": model.sizes.vocab,
            "original_vocab_size": model.vocab_size,
        }
    facts = [
        Fact(f"names of {dialect.name}", loads_in(model.family, dialect)),
        Fact("parameters only", "optimizer, scheduler and random number state stay behind"),
    ]
    if model.args is None and model.sizes.heads is None:
        # Megatron compares the number of heads and stops where args lack it; without args it compares nothing.
        facts.append(Fact("no args", "the source has none, and the number of heads is not known"))
    elif model.keep_args:
        entries["args"], dropped = _target_args(model)
        if dropped:
            facts.append(Fact(f"left out of args: {', '.join(dropped)}", "not plain data"))
    layout = model.layout
    trees = [_stage_tree(model, dialect, stage, entries) for stage in range(layout.pp)]
    container, entry = partial(plan_torch_file, ARCHIVE), "model" if layout.vpp == 1 else ""
    files = tuple(
        TargetFile(rank_path(model.iteration, layout, rank, stage), container, rank, stage, trees[stage], entry)
        for rank in range(layout.tp)
        for stage in range(layout.pp)
    )
    tracker = RELEASE if model.iteration is None else str(model.iteration)
    return TargetFiles(files, {TRACKER: tracker}, tuple(facts), tuple(_cautions(model)), owned=("iter_*", RELEASE))


def _refuse_settings(model: TargetModel) -> None:
    """What the legacy model computes otherwise than the source, though every tensor fits.

    [``megatron/legacy/model/language_model.py``: ``RotaryEmbedding`` is made without a base, so it is 10000]
    """
    theta = (model.args or {}).get("rope_theta")
    if model.family.positions == "rotary" and theta not in (None, 10000):
        raise UnsupportedError(
            f"rope_theta is {theta}: Megatron-LM's legacy model rotates with 10000 and has no argument for it",
            remedy="convert --to deepspeed, or --to huggingface",
        )


def _cautions(model: TargetModel) -> Iterator[str]:
    if len(set(model.layout.stages)) > 1:
        yield "stages of unequal length: Megatron-LM divides layers evenly over stages and loads no others"
    if model.iteration == 0:
        yield "iteration 0: Megatron-LM takes a tracker of 0 for an error until core_v0.16; say --iteration 1 for it"
    if model.keep_args and not is_plain((model.args or {}).get("position_embedding_type")):
        yield (
            "args.position_embedding_type is an enum of bigscience's code and is left out; its own loader compares it "
            "and stops: write for that loader with --no-args"
        )
    if model.family.name == "bloom" and model.dialect != "2021":
        yield "only bigscience's fork runs BLOOM, and it reads the names of 2021 alone"


def _stage_tree(model: TargetModel, dialect: Dialect, stage: int, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of one stage with :class:`Slot` leaves; it is the same for each tensor-parallel rank."""
    chunks = [_chunk_tree(model, dialect, stage, chunk) for chunk in range(model.layout.vpp)]
    if len(chunks) == 1:
        return {"model": chunks[0], "checkpoint_version": CHECKPOINT_VERSION, **entries}
    models = {f"model{number}": chunk for number, chunk in enumerate(chunks)}
    return {**models, "checkpoint_version": CHECKPOINT_VERSION, **entries}


def _chunk_tree(model: TargetModel, dialect: Dialect, stage: int, chunk: int) -> dict[str, Any]:
    """The model of one chunk of a stage; without virtual stages, of the stage."""
    family, layout = model.family, model.layout
    first, last = (stage, chunk) == (0, 0), (stage, chunk) == (layout.pp - 1, layout.vpp - 1)
    embedding: OrderedDict[str, Any] = OrderedDict()
    encoder: OrderedDict[str, Any] = OrderedDict()
    words = [p for p in family.parameters if p.section is Section.EMBEDDING]
    if first:
        for parameter in words:
            module, _, key = parameter.key.partition(".")
            embedding.setdefault(module, {})[key] = Slot(Section.EMBEDDING, -1, parameter.key)
    for local, layer in enumerate(layout.layers_of(stage, chunk)):
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
    return tree


def _target_args(model: TargetModel) -> tuple[argparse.Namespace, list[str]]:
    """The training arguments as the target needs them, and the names of those that are not plain data."""
    kept, dropped = carried_args(model)
    kept |= _llama_args(model)
    # Readers take it for evidence of rows of [3, heads, head_dim], which are not written.
    kept.pop("ds_sequence_parallel_fpdt", None)
    vpp = model.layout.vpp
    if vpp > 1 or "virtual_pipeline_model_parallel_size" in kept:
        kept["virtual_pipeline_model_parallel_size"] = vpp if vpp > 1 else None
        kept["num_layers_per_virtual_pipeline_stage"] = model.layout.stages[0] // vpp if vpp > 1 else None
    namespace = argparse.Namespace()
    vars(namespace).update(kept)
    return namespace, dropped


def _llama_args(model: TargetModel) -> dict[str, Any]:
    """What Megatron-LM's legacy model is told of a Llama-like model [``megatron/training/arguments.py``]."""
    if model.family.norm != "rmsnorm":
        return {}
    said = core_model_args(model)
    return {name: said.get(name) for name in _LLAMA_ARGS}


TARGET = TargetFormat("megatron-legacy", tuple(DIALECTS), lay_out, refusal, takes=frozenset(("--vpp",)))
