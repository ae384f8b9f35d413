"""What a folder of DeepSpeed's engine holds where it does not open as a model: file by file, with all that is wrong.

The readers of Megatron-DeepSpeed and GPT-NeoX stop at the first fault. This reads the same files with the same checks,
keeps the faults, and goes on with what is whole. Whose layers they are, their keys say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError
from streamconv.formats.common.faults import COPY_AGAIN, Collected, listed
from streamconv.formats.deepspeed.grid import check_grid, check_partitions
from streamconv.formats.deepspeed.layer_files import LayerFiles, join_layers, keys_of, open_layer_files
from streamconv.formats.deepspeed.layer_roles import check_roles, is_megatron, role_of
from streamconv.formats.deepspeed.names import FolderNames, parse_names
from streamconv.formats.deepspeed.rank_files import RankFiles, open_ranks, recorded_shapes
from streamconv.formats.gpt_neox.args import RECORDED
from streamconv.formats.gpt_neox.layer_files import check_neox_numbers, is_neox, neox_sections
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
        what: whose they are, in words.
        names: all files by what their names say.
        ranks: the files of ranks that could be opened, ZeRO-3's too.
        layers: the layer files that could be opened.
        args: the training arguments by the names of Megatron-DeepSpeed, None if there are none.
        model: the parameters by place, if nothing is wrong and the layers are Megatron's or GPT-NeoX's.
        faults: what is wrong.
    """

    folder: Path
    what: str
    names: FolderNames
    ranks: RankFiles
    layers: LayerFiles
    args: Mapping[str, Any] | None
    model: StoredModel | None
    faults: Collected

    @property
    def files(self) -> dict[str, StoredFile]:
        """The files that could be opened, by name."""
        layers = (file for ranks in self.layers.values() for file in ranks.values())
        return {file.path.name: file for file in (*layers, *self.ranks.files)}

    @property
    def iteration(self) -> int | None:
        """The iteration, or as DeepSpeed counts steps."""
        recorded = whole(self.ranks.state.get("iteration"))
        return whole(self.ranks.state.get("global_steps")) if recorded is None else recorded

    @property
    def pp(self) -> int | None:
        """Pipeline-parallel size: what the files count, else what the arguments say."""
        if self.names.tp and self.names.ranks:
            return self.names.model_ranks // self.names.tp
        said = whole((self.args or {}).get("pipeline_model_parallel_size"))
        return said if said and said > 0 else None


def survey(folder: Path) -> Survey | None:
    """Read what is whole in a folder of DeepSpeed's engine, metadata only; None if no file is named as one of it.

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
    return replace(found, model=_model(found, _sections(found)))


def _read(folder: Path, names: FolderNames) -> Survey:
    faults = Collected()
    rank_names = [names.ranks[rank] for rank in sorted(names.ranks)]
    ranks = open_ranks(folder, [*rank_names, *sorted(names.zero3.values())], faults)
    layers = open_layer_files(folder, names, faults)
    what = _whose(names, layers)
    args = _neox_args(ranks) if what == _NEOX else ranks.args
    return Survey(folder, what, names, ranks, layers, args, None, faults)


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


def _whose(names: FolderNames, layers: LayerFiles) -> str:
    if not names.layers:
        return "DeepSpeed, ZeRO stage 3" if names.zero3 else "DeepSpeed"
    keys = keys_of(layers).values()
    if is_neox(keys):
        return _NEOX
    # Layer 0 of Megatron's is a cast without parameters; what cannot be opened may be anybody's.
    is_ours = is_megatron(keys) and 0 not in names.layer_indices
    return _MEGATRON if is_ours or not keys else _OTHER


def _neox_args(ranks: RankFiles) -> dict[str, Any] | None:
    recorded = ranks.state.get("args")
    said = recorded if isinstance(recorded, dict) else {}
    return {ours: said[name] for name, ours in RECORDED.items() if said.get(name) is not None} or None


def _sections(found: Survey) -> dict[int, Section]:
    """What part of the model each layer is, and the faults in their numbers; nothing in somebody else's pipeline."""
    layers, keys = found.layers, keys_of(found.layers)
    if found.what == _NEOX:
        if found.names.layer_indices[-1] in keys:
            check_neox_numbers(found.folder, {index: keys.get(index, frozenset()) for index in layers}, found.faults)
        return neox_sections(keys)
    if found.what != _MEGATRON:
        _check_recorded_layers(found)
        return {}
    roles = _roles(keys, layers)
    known = all(index in roles for index in layers) and not any(roles[index] is None and keys[index] for index in keys)
    if known:
        named = sorted(found.names.layers.items())
        paths = {index: (found.folder / name, keys.get(index, ())) for (index, _), name in named}
        check_roles(found.folder, paths, roles, whole((found.args or {}).get("num_layers")), found.faults)
    return {index: roles[index] or Section.LAYER for index in keys}


def _roles(keys: Mapping[int, frozenset[str]], layers: LayerFiles) -> dict[int, Section | None]:
    """The role of each layer that could be opened. Between two transformer layers one is there though it could not."""
    roles = {index: role_of(found) for index, found in keys.items()}
    blocks = [index for index, role in roles.items() if role is Section.LAYER]
    inner = [index for index in layers if index not in keys and blocks and blocks[0] < index < blocks[-1]]
    return dict(sorted({**roles, **dict.fromkeys(inner, Section.LAYER)}.items()))


def _check_recorded_layers(found: Survey) -> None:
    """In a pipeline of a user's own, any layer may be without parameters; those with some stand in ``param_shapes``.

    A layer's number is its module's name [``deepspeed/runtime/pipe/module.py:_build``]. Without layer files the engine
    has saved the modules in the rank files, as it does with experts.
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
