"""Megatron-LM's legacy checkpoint: ``iter_*/mp_rank_*/model_optim_rng.pt`` with a nested ``language_model``.

The layout is what bigscience's ``tools/convert_checkpoint/deepspeed_to_megatron.py`` writes: ``embedding`` nested by
name, ``encoder`` flat, ``word_embeddings_for_head`` beside ``language_model``. QKV rows are those of
``checkpoint_version`` 3.0, ``[np, 3, hn]``.

That script fails on BLOOM's embedding norm. In bigscience's model it is beside the weight in ``embedding``, and not in
the head's copy, which the last stage loads strictly
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
from streamconv.formats.common.refusals import refusal_of
from streamconv.formats.megatron.args import core_model_args
from streamconv.formats.megatron.folder import ARCHIVE, TRACKER, rank_path
from streamconv.formats.megatron.legacy.options import LegacyOptions
from streamconv.formats.megatron.legacy.refusals import AGES, BIGSCIENCE, MEGATRON_LM, refusal
from streamconv.formats.recorded import RELEASE
from streamconv.formats.source import Fact
from streamconv.formats.target import Slot, TargetFile, TargetFiles, TargetFormat, TargetModel
from streamconv.models.family import ModelFamily
from streamconv.models.mechanisms import LEARNED, PARTIAL_ROTARY, ROTARY
from streamconv.models.parameter import WORDS, ParameterId, Section

__all__ = ["DIALECTS", "TARGET", "Dialect", "lay_out"]

CHECKPOINT_VERSION = 3.0
_MODEL_ARGS = (
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
# The mechanisms of the model that is built without any of these arguments.
_OF_2021 = frozenset(BIGSCIENCE) | {LEARNED}
_Model = TargetModel[LegacyOptions]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of the two sets of names of Megatron-LM's legacy model."""

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
    """The releases and forks that run the result, in words."""
    if reason := refusal_of("NVIDIA/Megatron-LM", family, MEGATRON_LM):
        return f"bigscience-workshop/Megatron-DeepSpeed; {reason}"
    since = max((MEGATRON_LM[mechanism].code for mechanism in family.mechanisms), key=AGES.index)
    if since == AGES[0]:
        return dialect.loads_in
    return f"NVIDIA/Megatron-LM {since} up to core_v0.17, from core_v0.8 with --use-legacy-models"


def lay_out(model: _Model) -> TargetFiles:
    """Every rank's file, the tracker, and facts about the result."""
    dialect = DIALECTS[model.options.dialect]
    _refuse_settings(model)
    entries: dict[str, Any] = {"iteration": model.iteration or 0}
    if model.vocab_size is not None:
        # Megatron-LM does not record the true size; readers of bigscience's entry find it here.
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
    elif model.options.keep_args:
        entries["args"], dropped = _target_args(model)
        if dropped:
            facts.append(Fact(f"left out of args: {', '.join(dropped)}", "not plain data"))
    layout = model.layout
    trees = [_stage_tree(model, dialect, stage, entries) for stage in range(layout.pp)]
    container, entry = partial(plan_torch_file, ARCHIVE), "model" if layout.vpp == 1 else ""
    files = tuple(
        TargetFile(rank_path(model.iteration, layout, rank), container, rank, trees[rank.pp], entry)
        for rank in layout.ranks()
    )
    tracker = RELEASE if model.iteration is None else str(model.iteration)
    return TargetFiles(files, {TRACKER: tracker}, tuple(facts), tuple(_cautions(model)), owned=("iter_*", RELEASE))


def _refuse_settings(model: _Model) -> None:
    """Refuse settings that the legacy model would silently ignore, though every tensor fits.

    [``megatron/legacy/model/language_model.py``: ``RotaryEmbedding`` is made without a base, so it is 10000]
    """
    theta = (model.args or {}).get("rope_theta")
    if ROTARY in model.family.mechanisms and theta not in (None, 10000):
        raise UnsupportedError(
            f"rope_theta is {theta}: Megatron-LM's legacy model rotates with 10000 and has no argument for it",
            remedy="convert --to deepspeed, or --to huggingface",
        )


def _cautions(model: _Model) -> Iterator[str]:
    if len(set(model.layout.stages)) > 1:
        yield "stages of unequal length: Megatron-LM divides layers evenly over stages and loads no others"
    if model.iteration == 0:
        yield "iteration 0: Megatron-LM takes a tracker of 0 for an error until core_v0.16; say --iteration 1 for it"
    if model.options.keep_args and not is_plain((model.args or {}).get("position_embedding_type")):
        yield (
            "args.position_embedding_type is an enum of bigscience's code and is left out; its own loader compares it "
            "and stops: write for that loader with --no-args"
        )
    if model.options.dialect != "2021" and refusal_of("Megatron-LM", model.family, MEGATRON_LM):
        yield f"only bigscience's fork runs {model.family.title}, and it reads the names of 2021 alone"


def _stage_tree(model: _Model, dialect: Dialect, stage: int, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of one stage with :class:`Slot` leaves; it is the same for each tensor-parallel rank."""
    chunks = [_chunk_tree(model, dialect, stage, chunk) for chunk in range(model.layout.vpp)]
    if len(chunks) == 1:
        return {"model": chunks[0], "checkpoint_version": CHECKPOINT_VERSION, **entries}
    models = {f"model{number}": chunk for number, chunk in enumerate(chunks)}
    return {**models, "checkpoint_version": CHECKPOINT_VERSION, **entries}


def _chunk_tree(model: _Model, dialect: Dialect, stage: int, chunk: int) -> dict[str, Any]:
    """The model in one chunk of a stage; without virtual stages a stage has one chunk."""
    family, layout = model.family, model.layout
    first, last = (stage, chunk) == (0, 0), (stage, chunk) == (layout.pp - 1, layout.vpp - 1)
    embedding: OrderedDict[str, Any] = OrderedDict()
    encoder: OrderedDict[str, Any] = OrderedDict()
    words = [p for p in family.parameters if p.section is Section.EMBEDDING]
    if first:
        for parameter in words:
            module, _, key = parameter.key.partition(".")
            embedding.setdefault(module, {})[key] = Slot(ParameterId(Section.EMBEDDING, -1, parameter.key))
    for local, layer in enumerate(layout.layers_of(stage, chunk)):
        for parameter in family.parameters:
            if parameter.section is Section.LAYER:
                encoder[dialect.encoder_key(f"layers.{local}.{parameter.key}")] = Slot(
                    ParameterId(Section.LAYER, layer, parameter.key)
                )
    language_model: dict[str, Any] = {"embedding": embedding, "encoder": encoder}
    tree: dict[str, Any] = {"language_model": language_model}
    if last:
        for parameter in family.parameters:
            if parameter.section is Section.FINAL_NORM:
                key = dialect.encoder_key(f"final_layernorm.{parameter.key}")
                encoder[key] = Slot(ParameterId(Section.FINAL_NORM, -1, parameter.key))
        if model.has_head:
            language_model["output_layer"] = OrderedDict(weight=Slot(ParameterId(Section.HEAD, -1, "lm_head.weight")))
        elif layout.pp > 1 or dialect.head_copy_always:
            weight = Slot(WORDS)
            tree["word_embeddings_for_head"] = OrderedDict(weight=weight)
    return tree


def _target_args(model: _Model) -> tuple[argparse.Namespace, list[str]]:
    """The training arguments for the target, and the names of those that are left out, which are not plain data."""
    kept, dropped = carried_args(model)
    kept |= _model_args(model)
    # Readers take it as evidence of rows of [3, heads, head_dim], which are not written here.
    kept.pop("ds_sequence_parallel_fpdt", None)
    vpp = model.layout.vpp
    if vpp > 1 or "virtual_pipeline_model_parallel_size" in kept:
        kept["virtual_pipeline_model_parallel_size"] = vpp if vpp > 1 else None
        kept["num_layers_per_virtual_pipeline_stage"] = model.layout.stages[0] // vpp if vpp > 1 else None
    namespace = argparse.Namespace()
    vars(namespace).update(kept)
    return namespace, dropped


def _model_args(model: _Model) -> dict[str, Any]:
    """The arguments of a model with mechanisms that are newer than 2021 [``megatron/training/arguments.py``]."""
    if model.family.mechanisms <= _OF_2021:
        return {}
    said = core_model_args(model)
    partial = ("rotary_percent",) if PARTIAL_ROTARY in model.family.mechanisms else ()
    return {name: said.get(name) for name in (*_MODEL_ARGS, *partial)}


TARGET = TargetFormat("megatron-legacy", lay_out, refusal, LegacyOptions)
