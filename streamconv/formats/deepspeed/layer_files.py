"""The tensors of Megatron-DeepSpeed's layer files by their place in the model, whichever number a file has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamconv.containers.pickles.machine import Global
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import Faults
from streamconv.formats.common.refusals import refuse_keys
from streamconv.formats.common.shards import check_same_parameters, join_ranks
from streamconv.formats.deepspeed.layer_roles import check_roles, is_megatron, numbered_by, role_of
from streamconv.formats.deepspeed.names import FolderNames
from streamconv.formats.deepspeed.refusals import families
from streamconv.models.parameter import ParameterId, Section

__all__ = [
    "LayerFiles",
    "Layers",
    "agreeing_layers",
    "join_layers",
    "keys_of",
    "module_tensors",
    "open_layer_files",
    "open_layers",
]

_ENCODER_KEY = re.compile(r"layers\.([0-9]{1,9})\.(.+)", re.DOTALL)

LayerFiles = dict[int, dict[int, StoredFile]]
"""The files of each layer by tensor-parallel rank; ranks may be missing if faults are collected."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layer files of a checkpoint: tensors by place, the file number of each role, and the names in the pickles.

    ``numbered_by`` is ``options.BIGSCIENCE`` or ``options.DEEPSPEEDAI``, None if neither.
    """

    tp: int
    tensors: dict[ParameterId, tuple[LazyTensor, ...]]
    first_block: int
    num_layers: int
    final_norm: int
    numbered_by: str | None
    numbering: str
    named: Mapping[Path, Mapping[Global, int]]


def open_layer_files(folder: Path, names: FolderNames, faults: Faults) -> LayerFiles:
    """The opened files of each layer, by tensor-parallel rank.

    Raises:
        DamagedError: ``faults`` is strict, and a file cannot be read.
    """
    files: LayerFiles = {}
    for (index, rank), name in sorted(names.layers.items()):
        mine = files.setdefault(index, {})
        file = faults.opened(folder / name, open_torch)
        if file is not None:
            mine[rank] = file
    return files


def open_layers(folder: Path, names: FolderNames, num_layers: int | None) -> Layers:
    """Open all layer files of a Megatron model and find the role of each by its keys.

    Args:
        folder: where they are.
        names: the files there; the grid (layer x rank) must be complete.
        num_layers: how many transformer layers the training arguments count, None if unknown.

    Raises:
        DamagedError: a file is broken, ranks differ, or numbers have a gap.
        UnsupportedError: a file has the keys of a family or a mechanism that is refused by name, or no layer is
            Megatron's.
    """
    strict = Faults()
    files = open_layer_files(folder, names, strict)
    for ranks in files.values():
        refuse_keys(set(ranks[0].tensors()), ranks[0].path, families())
    agreeing_layers(folder, files, strict)
    keys = keys_of(files)
    if not is_megatron(keys.values()):
        what = "a pipeline of DeepSpeed whose layers are not Megatron's: not translated"
        raise UnsupportedError(what, where=folder, remedy=f"families so far in such folders: {families()}")
    roles = {index: role_of(found) for index, found in keys.items()}
    layers = {index: (files[index][0].path, found) for index, found in keys.items()}
    check_roles(folder, layers, roles, num_layers, strict)
    sections = {index: role for index, role in roles.items() if role is not None}
    places = join_layers(folder, files, sections, strict)
    blocks = [index for index, role in sections.items() if role is Section.LAYER]
    norm = next(index for index, role in sections.items() if role is Section.FINAL_NORM)
    embedding = next(index for index, role in sections.items() if role is Section.EMBEDDING)
    fork, known = numbered_by(embedding, blocks[0], blocks[-1], norm)
    words = f"files {blocks[0]:02d} to {blocks[-1]:02d}, numbered as by {known}"
    named = {file.path: file.globals for ranks in files.values() for file in ranks.values()}
    return Layers(len(files[embedding]), places, blocks[0], len(blocks), norm, fork, words, named)


def agreeing_layers(folder: Path, files: LayerFiles, faults: Faults) -> LayerFiles:
    """The layers whose tensor-parallel ranks all have the same keys.

    What the others are, their keys cannot say: files of two layers may have changed places.

    Raises:
        DamagedError: ``faults`` is strict, and a layer's ranks differ.
    """
    agreeing: LayerFiles = {}
    for index, ranks in files.items():
        in_order = [file for _, file in sorted(ranks.items())]
        places = [{ParameterId(Section.LAYER, index, key) for key in file.tensors()} for file in in_order]
        try:
            check_same_parameters(places, [file.path.name for file in in_order], folder)
        except DamagedError as error:
            faults.note(error)
        else:
            agreeing[index] = ranks
    return agreeing


def keys_of(files: LayerFiles) -> dict[int, frozenset[str]]:
    """The keys of each layer, from the rank that has the most."""
    return {
        index: max((frozenset(file.tensors()) for file in ranks.values()), key=len)
        for index, ranks in files.items()
        if ranks
    }


def join_layers(
    folder: Path, files: LayerFiles, sections: Mapping[int, Section], faults: Faults
) -> dict[ParameterId, tuple[LazyTensor, ...]]:
    """The shards of each parameter by place; transformer layers are numbered in the order of their files.

    Raises:
        DamagedError: ``faults`` is strict, and ranks differ.
    """
    places: dict[ParameterId, tuple[LazyTensor, ...]] = {}
    blocks = [index for index, section in sections.items() if section is Section.LAYER]
    for index, section in sections.items():
        number = blocks.index(index) if section is Section.LAYER else -1
        layer_files = [file for _, file in sorted(files[index].items())]
        prefixed = [{ParameterId(section, number, key): t for key, t in file.tensors().items()} for file in layer_files]
        try:
            places |= join_ranks(prefixed, [file.path.name for file in layer_files], folder)
        except DamagedError as error:
            faults.note(error)
    return places


def module_tensors(file: StoredFile) -> dict[ParameterId, LazyTensor]:
    """The tensors of one rank's nested ``module`` (no pipeline engine) by place.

    ``language_model.{embedding,encoder,output_layer}``, the encoder's keys flat
    [``megatron/model/language_model.py:state_dict_for_save_checkpoint`` of Megatron-DeepSpeed].

    Raises:
        UnsupportedError: the module holds something else.
    """
    module = file.state.get("module")
    model = module.get("language_model") if isinstance(module, dict) else None
    if not isinstance(model, dict):
        raise UnsupportedError("its module is not a Megatron language model", where=file.path)
    prefix = "module.language_model."
    stray = [name for name in file.tensors() if name.startswith("module.") and not name.startswith(prefix)]
    places: dict[ParameterId, LazyTensor] = {}
    for name, tensor in file.tensors().items():
        if name.startswith(prefix):
            place = _module_place(name.removeprefix(prefix))
            if place is None:
                stray.append(name)
            else:
                places[place] = tensor
    refuse_keys({place.key for place in places if place.section is Section.LAYER}, file.path, families())
    if stray:
        raise UnsupportedError(f"{len(stray)} tensors of unknown role, the first is {stray[0]}", where=file.path)
    return places


def _module_place(name: str) -> ParameterId | None:
    part, _, key = name.partition(".")
    if part == "embedding":
        return ParameterId(Section.EMBEDDING, -1, key)
    if part == "output_layer":
        return ParameterId(Section.HEAD, -1, f"lm_head.{key}")
    if part in ("encoder", "transformer"):
        if match := _ENCODER_KEY.fullmatch(key):
            return ParameterId(Section.LAYER, int(match[1]), match[2])
        if key.startswith("final_layernorm."):
            return ParameterId(Section.FINAL_NORM, -1, key.removeprefix("final_layernorm."))
    return None
