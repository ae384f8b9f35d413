"""Megatron-DeepSpeed's tensors by their place in the model, whatever number their file has.

A layer file's number depends on fork, date, MoE and tying, so its role is read from its keys. The numbers are still
worth something: they must be one of the known numberings without a gap, or a layer is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from streamconv.containers.pickles.machine import Global
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.refusals import refuse_keys
from streamconv.formats.common.shards import join_ranks
from streamconv.formats.deepspeed.evidence import BIGSCIENCE, DEEPSPEEDAI
from streamconv.formats.deepspeed.refusals import families
from streamconv.models.parameter import ParameterId, Section

__all__ = ["Layers", "layer_file_names", "module_tensors", "open_layers"]

_LAYER_FILE = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
_ENCODER_KEY = re.compile(r"layers\.(\d+)\.(.+)")

# (first block - embedding, final norm - last block, index of the embedding) -> who numbers so, and in words.
_NUMBERINGS = {
    (2, 2, 1): (BIGSCIENCE, "bigscience's fork, or deepspeedai's before 2023-07"),
    (1, 1, 1): (DEEPSPEEDAI, "deepspeedai's fork since 2023-07"),
    (1, 2, 1): (DEEPSPEEDAI, "deepspeedai's fork with MoE (2024-04)"),
}
_UNKNOWN = (None, "an unknown fork")


@dataclass(frozen=True, slots=True)
class Layers:
    """The layer files of a checkpoint: tensors by place, the file index of each role, what the pickles name.

    ``numbered_by`` is ``deepspeed_evidence.BIGSCIENCE`` or ``DEEPSPEEDAI``, None if neither.
    """

    tp: int
    tensors: dict[ParameterId, tuple[LazyTensor, ...]]
    first_block: int
    num_layers: int
    final_norm: int
    numbered_by: str | None
    numbering: str
    named: Mapping[Path, Mapping[Global, int]]


def layer_file_names(folder: Path, names: Iterable[str]) -> dict[tuple[int, int], str]:
    """(layer index, tensor-parallel rank) of every layer file among ``names``; a file without a model axis is rank 0.

    Raises:
        DamagedError: two names mean the same layer and rank.
    """
    found: dict[tuple[int, int], str] = {}
    for name in names:
        if match := _LAYER_FILE.fullmatch(name):
            other = found.setdefault((int(match[1]), int(match[2] or 0)), name)
            if other != name:
                raise DamagedError(f"{other} and {name} are the same layer and rank", where=folder)
    return found


def open_layers(folder: Path, names: Mapping[tuple[int, int], str], num_layers: int | None) -> Layers:
    """Open all layer files and find each one's role by its keys.

    Args:
        folder: where they are.
        names: from :func:`layer_file_names`.
        num_layers: how many transformer layers the training arguments count, None if unknown.

    Raises:
        DamagedError: a file of the grid (layer x rank) is missing, ranks differ, or numbers have a gap.
        UnsupportedError: a file has the keys of a family or a mechanism that is refused by name.
    """
    tp = 1 + max(rank for _, rank in names)
    indices = sorted({index for index, _ in names})
    missing = len(indices) * tp - len(names)
    if missing:
        grid = ((index, rank) for index in indices for rank in range(tp))
        index, rank = next(place for place in grid if place not in names)
        raise DamagedError(
            f"{missing} of {len(indices) * tp} layer files are missing, "
            f"the first is layer_{index:02d}-model_{rank:02d}-model_states.pt",
            where=folder,
            remedy="copy the missing files from the training run's storage",
        )
    roles: dict[Section, list[int]] = {section: [] for section in Section}
    contents: dict[int, list[dict[str, LazyTensor]]] = {}
    named: dict[Path, Mapping[Global, int]] = {}
    for index in indices:
        files = [open_torch(folder / names[index, rank]) for rank in range(tp)]
        contents[index] = [file.tensors() for file in files]
        named |= {file.path: file.globals for file in files}
        roles[_role(contents[index][0], files[0].path)].append(index)
    numbering = _check_numbers(folder, roles, num_layers)
    places: dict[ParameterId, tuple[LazyTensor, ...]] = {}
    for section, found in roles.items():
        for position, index in enumerate(found):
            number = position if section is Section.LAYER else -1
            paths = [names[index, rank] for rank in range(tp)]
            prefixed = [
                {ParameterId(section, number, key): t for key, t in tensors.items()} for tensors in contents[index]
            ]
            places |= join_ranks(prefixed, paths, folder)
    blocks = roles[Section.LAYER]
    numbered_by, known = _NUMBERINGS.get(numbering, _UNKNOWN)
    words = f"files {blocks[0]:02d} to {blocks[-1]:02d}, numbered as by {known}"
    return Layers(tp, places, blocks[0], len(blocks), roles[Section.FINAL_NORM][0], numbered_by, words, named)


def _role(tensors: Mapping[str, LazyTensor], path: Path) -> Section:
    keys = set(tensors)
    refuse_keys(keys, path, families())
    if "word_embeddings.weight" in keys:
        return Section.EMBEDDING
    if "lm_head.weight" in keys:
        return Section.HEAD
    if "input_layernorm.weight" in keys:
        return Section.LAYER
    if keys and keys <= {"weight", "bias"}:
        return Section.FINAL_NORM
    raise UnsupportedError(
        f"a layer file of unknown role, with keys {', '.join(sorted(keys)[:6]) or '(none)'}", where=path
    )


def _check_numbers(
    folder: Path, roles: Mapping[Section, Sequence[int]], num_layers: int | None
) -> tuple[int, int, int]:
    blocks, norms, embeddings = roles[Section.LAYER], roles[Section.FINAL_NORM], roles[Section.EMBEDDING]
    if not blocks or len(norms) != 1 or len(embeddings) != 1 or len(roles[Section.HEAD]) > 1:
        raise DamagedError(
            f"{len(embeddings)} embedding, {len(blocks)} transformer, {len(norms)} final norm and "
            f"{len(roles[Section.HEAD])} head layers; a model has one embedding, one final norm and at most one head",
            where=folder,
        )
    gaps = [low + 1 for low, high in pairwise(blocks) if high != low + 1]
    numbering = (blocks[0] - embeddings[0], norms[0] - blocks[-1], embeddings[0])
    # A fork may number otherwise; then the arguments must confirm that no layer is missing at either end.
    if gaps or (numbering not in _NUMBERINGS and num_layers != len(blocks)):
        what = f"layer file {gaps[0]} is missing" if gaps else "the first or last transformer layers are missing"
        raise DamagedError(
            f"{what}: embedding is file {embeddings[0]}, transformer layers {blocks[0]} to {blocks[-1]}, "
            f"final norm {norms[0]}, which no known fork numbers so",
            where=folder,
            remedy="copy the missing files from the training run's storage",
        )
    return numbering


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
