"""Megatron-Core's checkpoints as a target: the ``torch`` container here, ``torch_dist`` in its own module.

``torch`` is a file for each rank, as in Megatron-LM's legacy layout, whose ``model`` is the flat state dict of
``megatron/core/models/gpt/gpt_model.py:GPTModel``; with virtual stages ``model0``, ``model1`` and on
[``megatron/training/checkpointing.py:generate_state_dict``]. A tied head has a copy on the last of several stages
[``megatron/core/models/common/language_module/language_module.py:setup_embeddings_and_output_layer``]. QKV rows are
``[groups, heads / groups + 2, head_dim]``, gate before up.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from streamconv.containers.torch_save.zip_writer import plan_torch_file
from streamconv.core.errors import UnsupportedError, UsageError
from streamconv.core.text import shown
from streamconv.formats.common.carried_args import carried_args
from streamconv.formats.megatron.args import TOKENIZERS, core_model_args, rotary_needs, scaling_caution, unknown_args
from streamconv.formats.megatron.core.dist_target import dist_files
from streamconv.formats.megatron.core.names import LINEARS, SPECS, core_name
from streamconv.formats.megatron.core.options import CoreOptions
from streamconv.formats.megatron.core.refusals import refusal
from streamconv.formats.megatron.flags import flags_of, layers_per_chunk, stage_args
from streamconv.formats.megatron.folder import ARCHIVE, TRACKER, rank_path
from streamconv.formats.megatron.releases import (
    ARGS_NOT_NEEDED,
    FIRST,
    GROUPS_BELOW_TP,
    LOCAL_RMSNORM,
    STAGE_LAYOUT,
    UNEVEN_ENDS,
    VIRTUAL_UNEVEN_ENDS,
    Need,
    refuse_older,
)
from streamconv.formats.recorded import RELEASE
from streamconv.formats.source import Fact
from streamconv.formats.target import Slot, TargetFile, TargetFiles, TargetFormat, TargetModel
from streamconv.models.config.training_args import neutral_args
from streamconv.models.mechanisms import NORMS_LESS_ONE, RMSNORM, in_words
from streamconv.models.parameter import WORDS, ParameterId, Section

__all__ = ["TARGET", "lay_out"]

CHECKPOINT_VERSION = 3.0
_SAID_OTHERWISE = (
    "rope_scaling",
    "use_rope_scaling",
    "rope_scaling_factor",
    "rotary_seq_len_interpolation_factor",
    "sliding_window",
    "window_size",
    "disable_bias_linear",
    "ds_sequence_parallel_fpdt",
)
_OWNED = ("iter_*", RELEASE)
# Mechanisms of Megatron-Core that the written model does not have, though a source's arguments may name them.
_NOT_BUILT = {
    "apply_layernorm_1p": "norms stored less 1",
    "apply_residual_connection_post_layernorm": "residuals behind the norms",
    "window_size": "a window that is none of the past",
}
_Model = TargetModel[CoreOptions]


def lay_out(model: _Model) -> TargetFiles:
    """Every file in the requested container, the tracker, and facts about the result.

    Raises:
        UsageError: the user's entries of the configuration contradict the model.
        UnsupportedError: no argument can express how the model works, or the named release cannot run it.
    """
    options = model.options
    container, release = options.container, options.megatron_version
    _refuse_spec(model)
    args, dropped = _args(model)
    needs = [*rotary_needs(args), *_needs(model)]
    refuse_older(release, needs)
    entries: dict[str, Any] = {"checkpoint_version": CHECKPOINT_VERSION, "iteration": model.iteration or 0}
    if model.vocab_size is not None:
        # Megatron-LM records the true size in args alone, as the user gave it; bigscience's readers expect it here.
        entries["checkpoint_info"] = {
            "padded_vocab_size": model.sizes.vocab,
            "original_vocab_size": model.vocab_size,
        }
    facts = list(_facts(model, args, needs, dropped))
    if options.keep_args and model.sizes.heads is not None:
        namespace = argparse.Namespace()
        vars(namespace).update(args)
        entries["args"] = namespace
    small: dict[str, str | bytes] = {}
    if container == "torch":
        files = _rank_files(model, entries)
    else:
        files, small = dist_files(model, entries, release)
    tracker = RELEASE if model.iteration is None else str(model.iteration)
    warnings = tuple(_cautions(model, args))
    return TargetFiles(files, {TRACKER: tracker}, tuple(facts), warnings, small=small, owned=_OWNED)


def _refuse_spec(model: _Model) -> None:
    """Refuse the local spec for norms that it does not have."""
    if model.options.spec == "local" and {RMSNORM, NORMS_LESS_ONE} <= model.family.mechanisms:
        # megatron/core/transformer/torch_norm.py:WrappedTorchNorm, which is the local spec's RMSNorm.
        raise UnsupportedError(
            f"--spec local: Megatron-Core's RMSNorm there has {in_words([NORMS_LESS_ONE])}", remedy="say --spec te"
        )


def _args(model: _Model) -> tuple[dict[str, Any], list[str]]:
    """The arguments to write, which include the source's other arguments, and the names that are left out."""
    kept, dropped = carried_args(model)
    layout, said, built = model.layout, neutral_args(model.args), core_model_args(model)
    for name, what in _NOT_BUILT.items():
        if said.get(name) is not None and said[name] is not False and said[name] != built.get(name):
            raise UnsupportedError(
                f"args.{name} is {shown(said[name])}: {what}, not translated",
                remedy=f'if the model is built without it, say it otherwise: --config with {{"{name}": null}}',
            )
    # Other frameworks' names; the model's own arguments express these in Megatron-LM's names.
    for name in _SAID_OTHERWISE:
        kept.pop(name, None)
    if str(kept.get("tokenizer_type")) not in TOKENIZERS and kept.pop("tokenizer_type", None) is not None:
        # Since core_v0.10 it replaces the run's own type, and the run stops at an unknown one.
        dropped.append("tokenizer_type")
    _refuse_contradictions(model, built)
    kept |= built
    kept |= {
        "use_mcore_models": True,
        "use_legacy_models": False,
        "ckpt_format": model.options.container,
        "transformer_impl": "local" if model.options.spec == "local" else "transformer_engine",
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "num_layers_per_virtual_pipeline_stage": layers_per_chunk(layout),
        "expert_model_parallel_size": 1,
        **stage_args(layout),
    }
    return kept, [name for name in dropped if name not in kept]


def _refuse_contradictions(model: _Model, built: Mapping[str, Any]) -> None:
    """Refuse the user's entries that differ from the arguments to write."""
    if "model_type" in model.supplied:
        return
    for name, said in model.supplied.items():
        if said is not None and name in built and not _same(said, built[name]):
            raise UsageError(
                f"--config says {name} {shown(said)}, and the model has {shown(built[name])}",
                remedy="leave it out, or say it by the name that the source says it by",
            )


def _same(said: Any, written: Any) -> bool:
    """Whether a value of a JSON file equals one of Python, ignoring the case of strings, in which forks differ."""
    if isinstance(said, str) and isinstance(written, str):
        return said.casefold() == written.casefold()
    return bool((tuple(said) if isinstance(said, list) else said) == written)


def _needs(model: _Model) -> Iterator[Need]:
    groups, container = model.sizes.groups, model.options.container
    if container == "torch_dist" and not (model.options.keep_args and model.sizes.heads is not None):
        yield Need("a torch_dist checkpoint without args", ARGS_NOT_NEEDED)
    if container == "torch":
        if groups is not None and groups < model.layout.tp:
            yield Need(f"{groups} key and value heads at TP {model.layout.tp}", GROUPS_BELOW_TP)
        said = stage_args(model.layout)
        if said["pipeline_model_parallel_layout"]:
            yield Need("stages of these lengths (--pipeline-model-parallel-layout)", STAGE_LAYOUT)
        elif any(said.values()):
            since = UNEVEN_ENDS if model.layout.vpp == 1 else VIRTUAL_UNEVEN_ENDS
            yield Need("a first or last stage of another length", since)
    if model.options.spec == "local" and RMSNORM in model.family.mechanisms:
        yield Need("RMSNorm in the local spec", LOCAL_RMSNORM)


def _facts(model: _Model, args: dict[str, Any], needs: list[Need], dropped: list[str]) -> Iterator[Fact]:
    options = model.options
    container, release = options.container, options.megatron_version
    spec = "the local spec" if options.spec == "local" else "Transformer Engine"
    first = max(needs, key=lambda need: need.since, default=None)
    since = f"core_v0.{first.since} for {first.what}" if first else f"core_v0.{FIRST}"
    yield Fact(f"container {container}, for the layers of {spec}", f"NVIDIA/Megatron-LM since {since}")
    yield Fact("parameters only", "optimizer, scheduler and random number state stay behind")
    has_args = options.keep_args and model.sizes.heads is not None
    if model.sizes.heads is None:
        # Megatron compares the number of heads and stops where args lack it; without args it compares nothing.
        yield Fact("no args", "the number of heads is not known")
    elif has_args and dropped:
        yield Fact(f"left out of args: {', '.join(dropped)}", "not plain data, or no value of Megatron-LM's")
    if has_args and "tokenizer_type" not in args:
        yield Fact("no tokenizer_type in args", "a run with --vocab-file compares it: say it with --config")
    words = "what args alone do not set" if has_args else "there are no args"
    yield Fact(f"flags for Megatron-LM: {' '.join(flags_of(model, container, options.spec, args, release))}", words)


def _cautions(model: _Model, args: dict[str, Any]) -> Iterator[str]:
    options = model.options
    if model.iteration == 0:
        yield "iteration 0: Megatron-LM takes a tracker of 0 for an error until core_v0.16; say --iteration 1 for it"
    if caution := scaling_caution(args):
        yield caution
    if unknown := unknown_args(args):
        yield (
            f"nothing says {', '.join(unknown)}, and the model's answers depend on it: Megatron-LM will take its "
            "defaults; say them with --config"
        )
    if options.container == "torch" and options.spec is None and model.spec == "local":
        # Norms get the other spec's names by default: a run of the source's spec would ignore them.
        names = "norms get the names of Transformer Engine, and have those of the local spec in the source"
        yield f"{names}: --spec local keeps them"


def _rank_files(model: _Model, entries: dict[str, Any]) -> tuple[TargetFile, ...]:
    layout = model.layout
    trees = [_stage_tree(model, stage, entries) for stage in range(layout.pp)]
    container = partial(plan_torch_file, ARCHIVE)
    entry = "model" if layout.vpp == 1 else ""
    return tuple(
        TargetFile(rank_path(model.iteration, layout, rank), container, rank, trees[rank.pp], entry)
        for rank in layout.ranks()
    )


def _stage_tree(model: _Model, stage: int, entries: dict[str, Any]) -> dict[str, Any]:
    """The state dict of one stage with :class:`Slot` leaves; it is the same for each tensor-parallel rank."""
    chunks = [_chunk(model, stage, chunk) for chunk in range(model.layout.vpp)]
    if len(chunks) == 1:
        return {**entries, "model": chunks[0]}
    return {**entries, **{f"model{number}": chunk for number, chunk in enumerate(chunks)}}


def _chunk(model: _Model, stage: int, chunk: int) -> OrderedDict[str, Slot | None]:
    family, layout, spec = model.family, model.layout, model.options.spec or SPECS[0]
    is_first = (stage, chunk) == (0, 0)
    is_last = (stage, chunk) == (layout.pp - 1, layout.vpp - 1)
    slots: OrderedDict[str, Slot | None] = OrderedDict()

    def add(section: Section) -> None:
        for parameter in family.parameters:
            if parameter.section is section:
                slots[core_name(parameter, None, spec)] = Slot(ParameterId(section, -1, parameter.key))

    if is_first:
        add(Section.EMBEDDING)
    for local, layer in enumerate(layout.layers_of(stage, chunk)):
        for parameter in family.parameters:
            if parameter.section is Section.LAYER:
                slots[core_name(parameter, local, spec)] = Slot(ParameterId(Section.LAYER, layer, parameter.key))
        if spec == "te":
            # Its linear layers load strictly only with their extra state (of FP8); None leaves it as it is.
            slots |= dict.fromkeys(f"decoder.layers.{local}.{linear}._extra_state" for linear in LINEARS)
    if is_last:
        add(Section.FINAL_NORM)
        if model.has_head:
            add(Section.HEAD)
        elif layout.pp > 1:
            slots["output_layer.weight"] = Slot(WORDS)
    return slots


TARGET = TargetFormat("megatron-core", lay_out, refusal, CoreOptions, is_core=True)
