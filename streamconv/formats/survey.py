"""Read a folder of DeepSpeed's engine that does not open as a model: file by file, collecting all faults.

The readers of Megatron-DeepSpeed and GPT-NeoX stop at the first fault. This reads the same files with the same checks,
keeps the faults, and goes on with the other files. The keys of the layers show which framework wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError
from streamconv.formats.common.faults import COPY_AGAIN, Collected, listed
from streamconv.formats.deepspeed.grid import check_experts, check_grid, check_partitions
from streamconv.formats.deepspeed.layer_files import LayerFiles, agreeing_layers, join_layers, keys_of, open_layer_files
from streamconv.formats.deepspeed.layer_roles import check_roles, is_megatron, is_neox, role_of
from streamconv.formats.deepspeed.names import FolderNames, parse_names
from streamconv.formats.deepspeed.rank_files import RankFiles, open_ranks, recorded_shapes
from streamconv.formats.gpt_neox.args import RECORDED
from streamconv.formats.gpt_neox.layer_files import check_neox_numbers, neox_sections
from streamconv.formats.recorded import whole
from streamconv.formats.source import StoredModel
from streamconv.models.parameter import Section

__all__ = ["Survey", "survey"]

_PARAMETER = re.compile(r"([0-9]{1,18})\..+")
_MEGATRON, _NEOX, _OTHER = "Megatron-DeepSpeed, pipeline engine", "GPT-NeoX", "DeepSpeed, pipeline engine"


@dataclass(frozen=True, slots=True)
class Survey:
    """A folder's files and what is wrong with them.

    Attributes:
        folder: where they are.
        what: the format, in words.
        names: all files, sorted by their names.
        ranks: the rank files that could be opened, including ZeRO-3's.
        layers: the layer files that could be opened.
        experts: the files of experts that could be opened.
        args: the training arguments by the names of Megatron-DeepSpeed, None if there are none.
        model: the parameters by place, if nothing is wrong and the layers are Megatron's or GPT-NeoX's.
        faults: all faults.
    """

    folder: Path
    what: str
    names: FolderNames
    ranks: RankFiles
    layers: LayerFiles
    experts: tuple[StoredFile, ...]
    args: Mapping[str, Any] | None
    model: StoredModel | None
    faults: Collected

    @property
    def files(self) -> dict[str, StoredFile]:
        """The files that could be opened, by name."""
        layers = (file for ranks in self.layers.values() for file in ranks.values())
        return {file.path.name: file for file in (*layers, *self.ranks.files, *self.experts)}

    @property
    def iteration(self) -> int | None:
        """The recorded iteration, else DeepSpeed's count of steps."""
        recorded = whole(self.ranks.state.get("iteration"))
        return whole(self.ranks.state.get("global_steps")) if recorded is None else recorded

    @property
    def pp(self) -> int | None:
        """Pipeline-parallel size: by the number of files, else by the arguments."""
        if self.names.tp and self.names.ranks:
            return self.names.model_ranks // self.names.tp
        said = whole((self.args or {}).get("pipeline_model_parallel_size"))
        return said if said and said > 0 else None


def survey(folder: Path) -> Survey | None:
    """The survey of a folder of DeepSpeed's engine, metadata only; None if no file has one of its names.

    Raises:
        StorageError: the folder cannot be listed.
    """
    names = parse_names(child.name for child in folder.iterdir())
    if not (names.model_files or names.optimizer):
        return None
    found = _read(folder, names)
    sizes = found.ranks.sizes(found.args, is_pipeline=bool(names.layers))
    check_grid(folder, names, sizes, found.faults)
    check_partitions(folder, names, sizes, found.faults)
    check_experts(folder, names, found.ranks.experts, found.faults)
    return replace(found, model=_model(found, _sections(found)))


def _read(folder: Path, names: FolderNames) -> Survey:
    faults = Collected()
    rank_names = [names.ranks[rank] for rank in sorted(names.ranks)]
    ranks = open_ranks(folder, [*rank_names, *sorted(names.zero3.values())], faults)
    layers = open_layer_files(folder, names, faults)
    opened = (faults.opened(folder / name, open_torch) for _, name in sorted(names.experts.items()))
    experts = tuple(file for file in opened if file is not None)
    what = _format_name(names, layers)
    args = _neox_args(ranks) if what == _NEOX else ranks.args
    return Survey(folder, what, names, ranks, layers, experts, args, None, faults)


def _model(found: Survey, sections: Mapping[int, Section]) -> StoredModel | None:
    """The parameters of layers by place, None if something is wrong or nothing says what they are."""
    tensors = join_layers(found.folder, found.layers, sections, found.faults)
    if found.faults or not tensors:
        return None
    return StoredModel(
        path=found.folder,
        format=found.what,
        tp=found.names.tp or 1,
        num_layers=sum(section is Section.LAYER for section in sections.values()),
        tensors=tensors,
        stages=None,
        pp=found.pp,
        args=found.args,
        iteration=found.iteration,
        vocab_size=None,
        qkv=None,
    )


def _format_name(names: FolderNames, layers: LayerFiles) -> str:
    if not names.layers:
        return "DeepSpeed, ZeRO stage 3" if names.zero3 else "DeepSpeed"
    keys = keys_of(layers).values()
    if is_neox(keys):
        return _NEOX
    # Layer 0 of Megatron is a cast without parameters, so it has no file. Without any keys Megatron is assumed.
    is_ours = is_megatron(keys) and 0 not in names.layer_indices
    return _MEGATRON if is_ours or not keys else _OTHER


def _neox_args(ranks: RankFiles) -> dict[str, Any] | None:
    recorded = ranks.state.get("args")
    said = recorded if isinstance(recorded, dict) else {}
    return {ours: said[name] for name, ours in RECORDED.items() if said.get(name) is not None} or None


def _sections(found: Survey) -> dict[int, Section]:
    """The part of the model that each layer is, empty for other pipelines; notes faults in the numbers.

    Where the ranks of a layer differ, that is the fault, and the numbers of all layers are not looked at.
    """
    if found.what not in (_MEGATRON, _NEOX):
        _check_recorded_layers(found)
        return {}
    layers = found.layers
    agreeing = agreeing_layers(found.folder, layers, found.faults)
    keys, all_agree = keys_of(agreeing), len(agreeing) == len(layers)
    if found.what == _NEOX:
        if all_agree and found.names.layer_indices[-1] in keys:
            check_neox_numbers(found.folder, {index: keys.get(index, frozenset()) for index in layers}, found.faults)
        return neox_sections(keys) if keys else {}
    roles = _roles(keys, layers)
    all_known = all(index in roles for index in layers)
    if all_agree and all_known and not any(roles[index] is None and keys[index] for index in keys):
        named = sorted(found.names.layers.items())
        paths = {index: (found.folder / name, keys.get(index, ())) for (index, _), name in named}
        check_roles(found.folder, paths, roles, whole((found.args or {}).get("num_layers")), found.faults)
    return {index: roles[index] or Section.LAYER for index in keys}


def _roles(keys: Mapping[int, frozenset[str]], layers: LayerFiles) -> dict[int, Section | None]:
    """The role of each opened layer; one that cannot be opened, between two transformer layers, is one of them."""
    roles = {index: role_of(found) for index, found in keys.items()}
    blocks = [index for index, role in roles.items() if role is Section.LAYER]
    inner = [index for index in layers if index not in keys and blocks and blocks[0] < index < blocks[-1]]
    return dict(sorted({**roles, **dict.fromkeys(inner, Section.LAYER)}.items()))


def _check_recorded_layers(found: Survey) -> None:
    """Note the missing files of a user's own pipeline: ``param_shapes`` names the layers that have parameters.

    A layer's number is the name of its module [``deepspeed/runtime/pipe/module.py:_build``]. Without layer files the
    engine saved the modules in the rank files, as it does with experts.
    """
    names = found.names
    shapes = (recorded_shapes(file.state) for file in found.ranks.files if names.layers)
    groups = (group for recorded in shapes if isinstance(recorded, list | tuple) for group in recorded)
    parameters = (str(name) for group in groups if isinstance(group, dict) for name in group)
    numbers = {int(match[1]) for name in parameters if (match := _PARAMETER.fullmatch(name))}
    lost = [f"layer_{number:02d}" for number in sorted(numbers - set(names.layer_indices))]
    if lost:
        words = f"no file has {listed(lost, len(lost))}, whose parameters the mp_rank files name (param_shapes)"
        found.faults.note(DamagedError(words, where=found.folder, remedy=COPY_AGAIN))
