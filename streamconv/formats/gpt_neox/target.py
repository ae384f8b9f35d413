"""A GPT-NeoX folder: weights to start from, without optimizer state.

There is a file for each layer and tensor-parallel rank, an ``mp_rank`` file for each rank of the pipeline, numbered
``stage * TP + rank``, ``latest``, and the entries of a run's configuration that the model needs. gpt-neox (ea7aefd)
loads modules strictly [``megatron/checkpointing.py:load_checkpoint``], compares every recorded argument with its own
[``check_checkpoint_args``], and stops without random number states unless ``finetune`` is true.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.writer import Call
from streamconv.containers.torch_save.zip_writer import plan_torch_file
from streamconv.core.errors import AmbiguousError, UnsupportedError
from streamconv.core.layout import RankCoordinates
from streamconv.formats.deepspeed.names import LATEST, OWNED, layer_file, rank_file, step_folder
from streamconv.formats.gpt_neox.args import CONFIGURED, RECORDED
from streamconv.formats.gpt_neox.names import FIRST_BLOCK, names_of_block
from streamconv.formats.gpt_neox.options import BEFORE, NeoxOptions
from streamconv.formats.gpt_neox.refusals import refusal
from streamconv.formats.gpt_neox.yaml_config import FOLDER
from streamconv.formats.source import Fact
from streamconv.formats.target import Slot, TargetFile, TargetFiles, TargetFormat, TargetModel
from streamconv.models.mechanisms import PARALLEL_RESIDUAL
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import ParameterId, Section

__all__ = ["TARGET", "lay_out"]

_SIZE = Global("torch", "Size")
_HEAD = "final_linear.weight"
_Model = TargetModel[NeoxOptions]


def lay_out(model: _Model) -> TargetFiles:
    """Every layer's and every rank's file, the configuration, ``latest``, and facts about the result.

    Raises:
        AmbiguousError: the model is cut over ranks, and it is unknown whether their biases are summed.
        UnsupportedError: the family is not written in this format.
    """
    if reason := refusal(model.family):
        raise UnsupportedError(reason, remedy="convert --to huggingface")
    has_any = PARALLEL_RESIDUAL in model.family.mechanisms
    parallel = (model.args or {}).get("use_parallel_residual") if has_any else False
    if not isinstance(parallel, bool) and model.layout.tp > 1:
        raise AmbiguousError(
            f"whether row-parallel biases are summed over {model.layout.tp} ranks depends on use_parallel_residual, "
            "which is not known",
            remedy='say {"use_parallel_residual": true} or false in --config',
        )
    orders = RowOrders(shares=parallel is True)
    tag = step_folder(model.iteration)
    files = (*_layer_files(model, tag), *_rank_files(model, tag, orders))
    config = _configuration(model)
    facts = [
        Fact("parameters only", 'start with "finetune": true: gpt-neox then loads the module alone'),
        Fact(f"configuration in {tag}/{FOLDER}/model.yml", "gpt-neox is to be started with these entries"),
    ]
    if model.vocab_size not in (None, model.sizes.vocab):
        words = f"recorded nowhere: say --vocab-size {model.vocab_size} --vocab-padding strip on the way back"
        facts.append(Fact(f"{model.vocab_size} true rows of the vocabulary", words))
    if orders.shares and model.layout.tp > 1:
        words = f"gpt_j_residual: each rank holds 1/{model.layout.tp} of a row-parallel bias, and their sum is used"
        facts.append(Fact("row-parallel biases in shares", words))
    return TargetFiles(
        files,
        {LATEST: tag},
        tuple(facts),
        orders=orders,
        small={f"{tag}/{FOLDER}/model.yml": json.dumps(config, indent=2) + "\n"},
        owned=OWNED,
    )


def _layers(model: _Model) -> Iterator[tuple[int, int, dict[str, Slot]]]:
    """(number of the file, stage, slots by key) of each layer that has parameters."""
    last, norm = model.layout.pp - 1, FIRST_BLOCK + model.layout.num_layers + 1
    yield 0, 0, _slots(model, Section.EMBEDDING)
    names = names_of_block(before_2024_09=model.options.fork == BEFORE)
    for stage in range(model.layout.pp):
        for layer in model.layout.layers_of(stage):
            block = _slots(model, Section.LAYER, layer)
            yield FIRST_BLOCK + layer, stage, {_renamed(key, names): slot for key, slot in block.items()}
    yield norm, last, {f"norm.{key}": slot for key, slot in _slots(model, Section.FINAL_NORM).items()}
    if model.has_head:
        (head,) = _slots(model, Section.HEAD).values()
        yield norm + 1, last, {_HEAD: head}


def _slots(model: _Model, section: Section, layer: int = -1) -> dict[str, Slot]:
    return {p.key: Slot(ParameterId(section, layer, p.key)) for p in model.family.parameters if p.section is section}


def _renamed(key: str, names: dict[str, str]) -> str:
    module, _, leaf = key.rpartition(".")
    return f"{names[module]}.{leaf}"


def _file(path: str, rank: int, stage: int, tree: Any) -> TargetFile:
    return TargetFile(path, partial(plan_torch_file, PurePosixPath(path).stem), RankCoordinates(rank, stage), tree, "")


def _layer_files(model: _Model, tag: str) -> Iterator[TargetFile]:
    """[``deepspeed/runtime/pipe/module.py:ckpt_layer_path``]"""
    for number, stage, slots in _layers(model):
        tree = OrderedDict(slots)
        for rank in range(model.layout.tp):
            yield _file(f"{tag}/{layer_file(number, rank)}", rank, stage, tree)


def _rank_files(model: _Model, tag: str, orders: RowOrders) -> Iterator[TargetFile]:
    """[``deepspeed/runtime/engine.py:_get_ckpt_name``]"""
    for stage in range(model.layout.pp):
        tree = _rank_tree(model, stage, orders)
        for rank in range(model.layout.tp):
            yield _file(f"{tag}/{rank_file(stage * model.layout.tp + rank)}", rank, stage, tree)


def _rank_tree(model: _Model, stage: int, orders: RowOrders) -> dict[str, Any]:
    """The entries that DeepSpeed requires, and GPT-NeoX's own two (``iteration``, ``args``).

    ``mp_world_size`` counts the ``mp_rank`` files [``state_dict_factory.py:check_ckpt_list``].
    """
    tp, pp = model.layout.tp, model.layout.pp
    iteration = model.iteration or 0
    return {
        "module": None,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [_param_shapes(model, stage, orders)],
        "lr_scheduler": None,
        "skipped_steps": 0,
        "global_steps": iteration,
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": tp * pp,
        "checkpoint_parallel_dimensions": {"pp_degree": pp, "tp_degree": tp},
        "ds_config": None,
        "ds_version": None,
        "iteration": iteration,
        **({"args": _recorded(model)} if model.options.keep_args else {}),
    }


def _param_shapes(model: _Model, stage: int, orders: RowOrders) -> OrderedDict[str, Call]:
    """The shapes of one rank's parameters, by the pipeline engine's names; a tied embedding is on both end stages."""
    named: dict[str, Slot] = {}
    for number, owner, slots in _layers(model):
        is_tied = number == 0 and not model.has_head
        if owner == stage or (is_tied and stage == model.layout.pp - 1):
            prefix = "tied_modules.embed" if is_tied else str(number)
            named |= {f"{prefix}.{key}": slot for key, slot in slots.items()}
    return OrderedDict((name, Call(_SIZE, (model.tensor_of(slot, orders).shape,))) for name, slot in named.items())


def _recorded(model: _Model) -> dict[str, Any]:
    """The arguments that gpt-neox compares with its own; unknown ones are left out, and are then not compared."""
    known = {**(model.args or {}), **_sizes(model), "tensor_model_parallel_size": model.layout.tp}
    return {name: known[ours] for name, ours in RECORDED.items() if isinstance(known.get(ours), int | str)}


def _sizes(model: _Model) -> dict[str, Any]:
    sizes = {
        "num_layers": model.sizes.num_layers,
        "hidden_size": model.sizes.hidden,
        "num_attention_heads": model.sizes.heads,
        "padded_vocab_size": model.sizes.vocab,
    }
    return {name: value for name, value in sizes.items() if value is not None}


def _configuration(model: _Model) -> dict[str, Any]:
    """The entries of a run's configuration that the model needs, by gpt-neox's names."""
    args, recorded = model.args or {}, _recorded(model)
    sizes = {name: recorded[name] for name in RECORDED if name in recorded and name != "padded_vocab_size"}
    said = {name: args[ours] for name, (ours, _) in CONFIGURED.items() if args.get(ours) is not None}
    return {
        "pipe_parallel_size": model.layout.pp,
        **sizes,
        "intermediate_size": model.sizes.ffn,
        "norm": "layernorm",
        "pos_emb": "rotary",
        "activation": "gelu",
        "no_weight_tying": model.has_head,
        **said,
        "finetune": True,
    }


TARGET = TargetFormat("gpt-neox", lay_out, refusal, NeoxOptions)
