"""Megatron-Core's ``torch_dist`` container as a source: whole tensors, whichever ranks wrote their chunks.

Layers are stacked in one tensor along its first axis, or each has a name of its own
[``megatron/core/transformer/transformer_block.py:sharded_state_dict``]. A gated ``linear_fc1`` is one tensor, all
of the gate before all of the up, or two (``weight_w``, ``weight_v``, likewise its bias) if each half is stored under a
name of its own [``megatron/core/transformer/mlp.py:apply_swiglu_sharded_factory``].
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamconv.containers.dcp.metadata_reader import NAME as METADATA
from streamconv.containers.dcp.reader import DistributedCheckpoint, open_distributed
from streamconv.containers.json_file import read_entries
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.formats.common.shards import check_axes, count_layers
from streamconv.formats.megatron.core.common_state import read_common_state
from streamconv.formats.megatron.core.names import COMMON_STATE_OBJECT, MOST_LAYERS, CoreName, parse_core_name
from streamconv.formats.megatron.core.refusals import check_version, refuse_args, refuse_names
from streamconv.formats.megatron.folder import CONFIG_FILE, resolve_folder
from streamconv.formats.options import TrainingSourceOptions
from streamconv.formats.recorded import find_iteration, recorded_args, true_vocabulary
from streamconv.formats.source import Dropped, Fact, StoredModel, positive_int
from streamconv.models.config.training_args import neutral_args
from streamconv.models.parameter import ParameterId, Section

__all__ = ["open_dist", "says_untied"]

_OPTIMIZER = re.compile(r"(chained_[0-9]+\.)?optimizer\..+")
_HALVES = {f"mlp.linear_fc1.{leaf}_{half}": number for leaf in ("weight", "bias") for number, half in enumerate("wv")}


def open_dist(path: Path, options: TrainingSourceOptions) -> StoredModel:
    """Open a ``torch_dist`` checkpoint, metadata only.

    Raises:
        SourceError: the checkpoint, or a file that it names, is not there.
        UnsupportedError: the checkpoint is of a kind that is refused by name.
        DamagedError: files are broken or contradict each other.
    """
    folder, chosen = resolve_folder(path, options.tag)
    _refuse_backend(folder)
    stored = open_distributed(folder)
    state = read_common_state(folder, stored).state
    args = recorded_args(state, folder)
    check_version(state, folder)
    refuse_args(args or {}, folder)
    optimizer = {name for name in stored.tensors if _OPTIMIZER.fullmatch(name)}
    said_layers = positive_int(args, "num_layers", folder)
    parameters = {name: tensor for name, tensor in stored.tensors.items() if name not in optimizer}
    tensors, stacked = _places(folder, parameters, said_layers)
    num_layers = count_layers(tensors, folder)
    if said_layers not in (None, num_layers):
        raise DamagedError(f"args say {said_layers} layers, {num_layers} are there", where=folder)
    _check_head(tensors, says_untied(args, options), folder)
    facts = [
        *([] if chosen is None else [chosen]),
        Fact("whole tensors: TP 1 x PP 1", f"torch_dist; {len(stored.files)} files of chunks that ranks wrote"),
        Fact("layers stacked in one tensor" if stacked else "layers with names of their own", "the names in .metadata"),
    ]
    no_args = "no training arguments: sizes come from the tensors, the rest from options"
    return StoredModel(
        path=folder,
        format="Megatron-Core, torch_dist",
        tp=1,
        num_layers=num_layers,
        tensors=tensors,
        stages=(num_layers,),
        pp=1,
        args=None if args is None else neutral_args({**args, "padded_vocab_size": None}),
        iteration=find_iteration(folder, state, options.iteration),
        vocab_size=true_vocabulary(state),
        qkv=None,
        named={folder / METADATA: stored.globals},
        facts=tuple(facts),
        warnings=(no_args,) if args is None else (),
        dropped=tuple(_left_behind(stored, optimizer)),
    )


def _left_behind(stored: DistributedCheckpoint, optimizer: Collection[str]) -> Iterator[Dropped]:
    if optimizer:
        nbytes = sum(stored.tensors[name].nbytes for name in optimizer)
        yield Dropped(f"{len(optimizer)} tensors of the optimizer", nbytes, "parameters only")
    objects = {name: place.nbytes for name, place in stored.objects.items() if name != COMMON_STATE_OBJECT}
    if objects:
        reason = "extra state (of FP8) and random number state: parameters only"
        yield Dropped(f"{len(objects)} objects", sum(objects.values()), reason)


def says_untied(args: Mapping[str, Any] | None, options: TrainingSourceOptions) -> bool | None:
    """Whether the head is not tied to the embedding, by args or else by ``--config``; None if unknown."""
    said = (args or {}).get("untie_embeddings_and_output_weights")
    if said is None:
        said = options.entries.get("untie_embeddings_and_output_weights")
    if said is None and isinstance(options.entries.get("tie_word_embeddings"), bool):
        said = not options.entries["tie_word_embeddings"]
    return None if said is None else bool(said)


def _check_head(tensors: Mapping[ParameterId, Any], is_untied: bool | None, folder: Path) -> None:
    has_head = any(parameter.section is Section.HEAD for parameter in tensors)
    if is_untied is not None and is_untied != has_head:
        tied, there = ("not tied", "no") if is_untied else ("tied", "an")
        raise DamagedError(
            f"the head is said to be {tied} to the embedding, and there is {there} output_layer.weight", where=folder
        )


def _refuse_backend(folder: Path) -> None:
    """Refuse other containers, such as the earlier one with a folder for each tensor.

    [``strategies/zarr.py`` of core_v0.15]
    """
    if not (folder / METADATA).is_file() and (folder / CONFIG_FILE).is_file():
        backend = read_entries(folder / CONFIG_FILE, "description of a checkpoint", 1 << 20).get("sharded_backend")
        if backend != "torch_dist":
            raise UnsupportedError(
                f"a Megatron-Core checkpoint in the container {str(backend)[:40]!r}",
                where=folder,
                remedy="load and save it once with --ckpt-format torch_dist",
            )


def _places(
    folder: Path, stored: Mapping[str, LazyTensor], said_layers: int | None
) -> tuple[dict[ParameterId, tuple[LazyTensor, ...]], bool]:
    """The parameters by place, with stacked layers taken apart; and whether any were stacked.

    Raises:
        UnsupportedError: a tensor is no parameter of a GPT model.
        DamagedError: a parameter is empty, stored twice, or stacks another number of layers than the others.
    """
    whole = _whole_halves(stored)
    known = {name: parse_core_name(name) for name in whole}
    refuse_names([name for name, place in known.items() if place is None], folder)
    stacks: dict[int, str] = {}
    for name, tensor in whole.items():
        place = known[name]
        is_stack = place is not None and place.is_stack
        if not tensor.numel or len(tensor.shape) <= is_stack:
            what = "the layers of a parameter" if is_stack else "a parameter"
            raise DamagedError(f"{name} has the shape {tensor.shape}, which {what} cannot have", where=folder)
        if is_stack:
            stacks.setdefault(tensor.shape[0], name)
    if len(stacks) > 1:
        words = ", ".join(f"{name} has {layers}" for layers, name in sorted(stacks.items()))
        raise DamagedError(f"stacks of different heights: {words}", where=folder)
    for layers, name in stacks.items():
        if said_layers not in (None, layers):
            raise DamagedError(f"args say {said_layers} layers, {layers} are there", where=folder)
        if layers > MOST_LAYERS:
            raise DamagedError(f"{name} has {layers} layers: more than {MOST_LAYERS}", where=folder)
    places: dict[ParameterId, LazyTensor] = {}
    for name, tensor in whole.items():
        for at, part in _parts(known[name], tensor):
            if at in places:
                raise DamagedError(f"{name} is there under two names", where=folder)
            places[at] = part
    if not any(parameter.section is Section.EMBEDDING for parameter in places):
        raise DamagedError("there is no embedding among the tensors", where=folder)
    tensors: dict[ParameterId, tuple[LazyTensor, ...]] = {at: (tensor,) for at, tensor in places.items()}
    check_axes(tensors, folder)
    return tensors, bool(stacks)


def _parts(known: CoreName | None, tensor: LazyTensor) -> list[tuple[ParameterId, LazyTensor]]:
    """The parameters in a tensor: one, or one for each layer of a stack."""
    if known is None:
        return []
    if not known.is_stack:
        return [(known.place, tensor)]
    layers = range(tensor.shape[0])
    return [
        (replace(known.place, layer=layer), tensor.slice(0, layer, layer + 1).flatten(0).coalesced())
        for layer in layers
    ]


def _whole_halves(stored: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """All tensors, with separately named halves of a gated linear unit joined: gate, then up."""
    joined: dict[str, LazyTensor] = {}
    halves: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in stored.items():
        half = next((number for ending, number in _HALVES.items() if name.endswith(ending)), None)
        if half is None:
            joined[name] = tensor
        else:
            halves.setdefault(name[:-2], {})[half] = tensor
    for name, pair in halves.items():
        if len(pair) == 2 and pair[0].shape == pair[1].shape and name not in joined:
            rows = len(pair[0].shape) - (1 if name.endswith("bias") else 2)
            joined[name] = concat([pair[0], pair[1]], rows)
        else:
            joined |= {f"{name}_{'wv'[number]}": tensor for number, tensor in pair.items()}
    return joined
