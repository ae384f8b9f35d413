"""A Megatron-DeepSpeed pipeline-engine folder: weights to start from, without optimizer state.

There is a file for each layer and tensor-parallel rank [``deepspeed/runtime/pipe/module.py:save_state_dict``], an
``mp_rank`` file for each rank of the pipeline, numbered ``stage * TP + rank``
[``pipe/topology.py:PipeModelDataParallelTopology``, which always has a model axis], and ``latest``. File numbers, row
orders and recorded entries depend on the fork of Megatron-DeepSpeed (:mod:`streamconv.formats.deepspeed.forks`).
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.writer import Call
from streamconv.containers.torch_save.zip_writer import plan_torch_file
from streamconv.core.dtypes import DType
from streamconv.core.errors import UnsupportedError
from streamconv.core.layout import RankCoordinates
from streamconv.formats.common.carried_args import carried_args
from streamconv.formats.deepspeed.forks import FORKS, Fork, counted
from streamconv.formats.deepspeed.names import LATEST, OWNED, layer_file, rank_file, step_folder
from streamconv.formats.deepspeed.options import DeepSpeedOptions
from streamconv.formats.deepspeed.refusals import refusal
from streamconv.formats.deepspeed.runs import mechanisms_of
from streamconv.formats.source import Fact
from streamconv.formats.target import Slot, TargetFile, TargetFiles, TargetFormat, TargetModel
from streamconv.models.mechanisms import in_words
from streamconv.models.parameter import WORDS, ParameterId, Section

__all__ = ["TARGET", "lay_out"]

CHECKPOINT_VERSION = 3.0
_SIZE = Global("torch", "Size")
_Model = TargetModel[DeepSpeedOptions]


def lay_out(model: _Model) -> TargetFiles:
    """Every layer's and every rank's file, ``latest``, and facts about the result.

    Raises:
        UnsupportedError: the requested fork cannot run the model, or no fork can.
    """
    fork, why = _choose(model)
    tag = step_folder(model.iteration)
    args, facts = _arguments(model, fork)
    files = [*_layer_files(model, fork, tag), *_rank_files(model, fork, tag, args)]
    facts = [
        Fact(f"for {fork.title}", why),
        Fact("parameters only", f"optimizer, scheduler and random number state stay behind; {fork.start}"),
        *facts,
    ]
    if len(set(model.layout.stages)) > 1:
        words = "each rank opens the layers that DeepSpeed's own method gives to it, wherever they were before"
        facts.append(Fact("stages of unequal length stand in param_shapes alone", words))
    warnings: tuple[str, ...] = ()
    if args is None and fork.first_block == 2:
        order = fork.orders.qkv.value
        warnings = (f"without args nothing tells the order of query_key_value: readers need --qkv-layout {order}",)
    return TargetFiles(tuple(files), {LATEST: tag}, tuple(facts), warnings, fork.orders, owned=OWNED)


def _choose(model: _Model) -> tuple[Fork, str]:
    """The requested fork, else the source's own, else the first that runs the model; and the reason."""
    if model.options.fork is not None:
        fork = FORKS[model.options.fork]
        lacking = _lacking(fork, model)
        if lacking is None:
            return fork, f"--fork {fork.name}"
        runnable = [other.name for other in FORKS.values() if _lacking(other, model) is None]
        raise UnsupportedError(
            f"{model.family.title} does not run there: {fork.title} has {lacking}",
            remedy=f"choose --fork {' or '.join(runnable)}" if runnable else "convert --to huggingface",
        )
    own = FORKS.get(model.fork or "")
    if own is not None and _lacking(own, model) is None:
        return own, "the fork that wrote the source"
    for fork in FORKS.values():
        if _lacking(fork, model) is None:
            others = [f"{other.name} has {_lacking(other, model)}" for other in FORKS.values()]
            before = "; ".join(others[: list(FORKS.values()).index(fork)])
            return fork, f"the first that runs the model{f': {before}' if before else ''}; --fork chooses another"
    reasons = refusal(model.family) or "; ".join(f"{fork.name} has {_lacking(fork, model)}" for fork in FORKS.values())
    raise UnsupportedError(f"no fork runs {model.family.title}: {reasons}", remedy="convert --to huggingface")


def _lacking(fork: Fork, model: _Model) -> str | None:
    """What a model needs and a fork lacks, in words; None if the fork runs it."""
    missing = mechanisms_of(model) - fork.runs.keys()
    return in_words(missing) if missing else fork.lacks_for(model)


def _layers(model: _Model, fork: Fork) -> Iterator[tuple[int, int, dict[str, Slot]]]:
    """(number of the file, stage, slots by key) of each layer that has parameters."""
    last, end = model.layout.pp - 1, fork.first_block + model.layout.num_layers - 1
    yield fork.embedding, 0, _slots(model, Section.EMBEDDING)
    for stage in range(model.layout.pp):
        for layer in model.layout.layers_of(stage):
            yield fork.first_block + layer, stage, _slots(model, Section.LAYER, layer)
    yield end + fork.norm_after, last, _slots(model, Section.FINAL_NORM)
    if model.has_head:
        yield end + fork.norm_after + 1, last, _slots(model, Section.HEAD)


def _slots(model: _Model, section: Section, layer: int = -1) -> dict[str, Slot]:
    keys = (p.key for p in model.family.parameters if p.section is section)
    return {key: Slot(ParameterId(section, layer, key)) for key in keys}


def _file(path: str, rank: int, stage: int, tree: Any) -> TargetFile:
    return TargetFile(path, partial(plan_torch_file, PurePosixPath(path).stem), RankCoordinates(rank, stage), tree, "")


def _layer_files(model: _Model, fork: Fork, tag: str) -> Iterator[TargetFile]:
    """[``deepspeed/runtime/pipe/module.py:ckpt_layer_path``]"""
    for number, stage, slots in _layers(model, fork):
        for rank in range(model.layout.tp):
            yield _file(f"{tag}/{layer_file(number, rank)}", rank, stage, OrderedDict(slots))


def _rank_files(model: _Model, fork: Fork, tag: str, args: argparse.Namespace | None) -> Iterator[TargetFile]:
    """[``deepspeed/runtime/engine.py:_get_ckpt_name``]"""
    for stage in range(model.layout.pp):
        shapes = _param_shapes(model, fork, stage)
        for rank in range(model.layout.tp):
            path = f"{tag}/{rank_file(stage * model.layout.tp + rank)}"
            yield _file(path, rank, stage, _rank_tree(model, fork, shapes, args))


def _rank_tree(
    model: _Model, fork: Fork, shapes: OrderedDict[str, Call], args: argparse.Namespace | None
) -> dict[str, Any]:
    """The entries of :func:`DeepSpeedEngine._common_checkpoint_state`, and those of the fork.

    ``mp_world_size`` counts the ``mp_rank`` files: ``state_dict_factory.py:check_ckpt_list`` compares it. No
    DeepSpeed wrote this, so ``ds_config`` is None, and ``ds_version`` too, which loaders read in optimizer files only.
    """
    tp, pp = model.layout.tp, model.layout.pp
    iteration = model.iteration or 0
    scheduler = fork.scheduler(model)
    return {
        "module": None,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": scheduler if scheduler is None else dict(scheduler),
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": iteration,
        "global_samples": counted(model, "consumed_train_samples"),
        "dp_world_size": 1,
        "mp_world_size": tp * pp,
        "checkpoint_parallel_dimensions": {"pp_degree": pp, "tp_degree": tp},
        "ds_config": None,
        "ds_version": None,
        **({} if args is None else {"args": args}),
        "checkpoint_version": CHECKPOINT_VERSION,
        "iteration": iteration,
        "tokens": counted(model, "consumed_train_tokens"),
        **fork.entries(model),
    }


def _param_shapes(model: _Model, fork: Fork, stage: int) -> OrderedDict[str, Call]:
    """The shapes of one rank's parameters, by the pipeline engine's names, tied ones first
    [``deepspeed/runtime/pipe/module.py:_build``; ``engine.py:_get_zero_param_shapes``].
    """
    tied = "tied_modules.embed." if not model.has_head else f"{fork.embedding}."
    named: dict[str, Slot] = {}
    first = stage == 0
    if first or (stage == model.layout.pp - 1 and not model.has_head):
        embedding = _slots(model, Section.EMBEDDING)
        named |= {f"{tied}{key}": slot for key, slot in embedding.items() if first or key not in fork.first_only}
    for number, owner, slots in _layers(model, fork):
        if owner == stage and number != fork.embedding:
            named |= {f"{number}.{key}": slot for key, slot in slots.items()}
    shapes = ((name, model.tensor_of(slot, fork.orders).shape) for name, slot in named.items())
    return OrderedDict((name, Call(_SIZE, (shape,))) for name, shape in shapes)


def _arguments(model: _Model, fork: Fork) -> tuple[argparse.Namespace | None, list[Fact]]:
    """The training arguments for the fork, None if none are written; and facts about them."""
    if model.args is None and model.sizes.heads is None:
        # The forks compare the number of heads and stop where args lack it; without args they compare nothing.
        return None, [Fact("no args", "the source has none, and the number of heads is not known")]
    if not model.options.keep_args:
        return None, []
    kept, dropped = carried_args(model)
    own = fork.arguments(model)
    kept = {name: value for name, value in kept.items() if name not in fork.without} | dict(own)
    if "params_dtype" not in kept:
        dtype: DType = model.tensor_of(Slot(WORDS), fork.orders).dtype
        kept["params_dtype"] = Global("torch", dtype.name)
        kept |= {"fp16": dtype.name == "float16", "bf16": dtype.name == "bfloat16"}
    namespace = argparse.Namespace()
    vars(namespace).update(kept)
    left = [name for name in dropped if name not in own]
    return namespace, [Fact(f"left out of args: {', '.join(left)}", "not plain data")] if left else []


TARGET = TargetFormat("deepspeed", lay_out, refusal, DeepSpeedOptions)
