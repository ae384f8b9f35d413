"""The optimizer's copy of the model: masters out of the optimizer files, and what they do not have from the module.

Frozen parameters have no master, nor have buffers; a shared name has its parameter's
[deepspeed/utils/zero_to_fp32.py:_get_fp32_state_dict_from_zero2_checkpoint].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.replica import Replica
from streamconv.formats.common.faults import COPY_AGAIN
from streamconv.formats.deepspeed.names import FolderNames
from streamconv.formats.deepspeed.rank_files import RankFiles
from streamconv.formats.deepspeed.zero.flat import Flat, Rebuilt, scattered_parts
from streamconv.formats.deepspeed.zero.module import Module
from streamconv.formats.deepspeed.zero.partitions import (
    Partitions,
    beyond_partitions,
    joined_partitions,
    optimizer_state,
)
from streamconv.formats.deepspeed.zero.recorded import Shapes, groups_of, partition_counts, shapes_of, shared_names
from streamconv.formats.deepspeed.zero.steps import check_optimizer_steps

__all__ = ["Masters", "frozen_parameters", "open_masters", "shared_in"]

_FLAT_GROUPS = "fp32_flat_groups"


@dataclass(slots=True)
class Masters:
    """Parameters by name, what they are cut from, the optimizer files, and remarks.

    ``from_module`` are parameters that no optimizer file has, taken as the module has them; ``replicas`` are what
    several stages hold.
    """

    rebuilt: Rebuilt
    files: tuple[StoredFile, ...]
    dtype: str = "fp32"
    remarks: list[str] = field(default_factory=list)
    from_module: list[str] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)


def open_masters(folder: Path, names: FolderNames, ranks: RankFiles, module: Module) -> Masters:
    """Open the optimizer files and put the parameters together, metadata only.

    Raises:
        UnsupportedError: they are of a layout that is not read, by name.
        DamagedError: files are missing, broken or contradict each other.
    """
    if not names.optimizer:
        raise UnsupportedError(
            "no masters by name: there is no *_optim_states.pt file by ZeRO or the BF16 optimizer; those of ZeRO stage "
            "0 are in the model file without names, and in fp32 the model is its own master",
            where=folder,
            remedy="take the model's own weights: --weights model",
        )
    result = Masters(Rebuilt(), ())
    by_rank = {file.path.name: file for file in ranks.files}
    for model_rank in sorted({rank for _, rank in names.optimizer}):
        places = sorted(place for place in names.optimizer if place[1] == model_rank)
        files = [open_torch(folder / names.optimizer[place]) for place in places]
        check_optimizer_steps(files)
        model_files = [by_rank[names.zero3[place]] for place in places if place in names.zero3]
        own = model_files or [by_rank[names.ranks[model_rank]]] if model_rank in names.ranks or model_files else []
        if not own:
            raise DamagedError(f"no model file of model-parallel rank {model_rank}", where=folder, remedy=COPY_AGAIN)
        groups = groups_of(own[0].state, own[0].path)
        if groups is None:
            raise UnsupportedError("the model file does not name the masters (param_shapes)", where=own[0].path)
        rebuilt, remarks = _rebuilt(files, groups, own[0].state, folder)
        for name in rebuilt.tensors.keys() & result.rebuilt.tensors.keys():
            copy = rebuilt.tensors.pop(name)
            both = result.rebuilt.tensors[name], copy
            result.replicas.append(Replica(f"{name} of stage {model_rank}", both, "the first stage's", True))
        result.rebuilt.add(rebuilt)
        result.rebuilt.add(frozen_parameters(own))
        result.remarks += remarks
        result.files += tuple(files)
    dtypes = {tensor.dtype.name for name, tensor in result.rebuilt.sources.items() if "frozen" not in name}
    result.dtype = ", ".join(sorted(dtypes)) or "fp32"
    _add_rest(result, ranks, module, folder)
    return result


def _rebuilt(
    files: Sequence[StoredFile], groups: Sequence[Shapes], model_state: Mapping[str, Any], folder: Path
) -> tuple[Rebuilt, list[str]]:
    first = optimizer_state(files[0])
    if _FLAT_GROUPS not in first:
        config = model_state.get("ds_config") or files[0].state.get("ds_config")
        data_first = isinstance(config, dict) and config.get("use_data_before_expert_parallelism") is True
        return joined_partitions(Partitions(files, data_first), groups)
    flats = [_flat_groups(file) for file in files]
    if any(all(shape) for group in groups for shape in group.values()) and not any(flat.numel for flat in flats):
        raise UnsupportedError(
            "the optimizer files hold no masters: with offload to NVMe (offload_optimizer) these were swapped out",
            where=folder,
            remedy="save again with stage3_gather_16bit_weights_on_model_save, or without offload to NVMe",
        )
    (count,) = partition_counts(first.get("partition_count", len(files)), 1, files[0].path)
    if count != len(files):
        if model_state.get("dp_world_size") == count < len(files):
            raise beyond_partitions(folder, files, count)
        raise UnsupportedError(
            f"parameters are cut into {count} parts, and there are files of {len(files)} ranks (MiCS): not read",
            where=folder,
        )
    shapes: Shapes = {}
    for group in groups:
        if shapes.keys() & group.keys():
            raise DamagedError(f"{min(shapes.keys() & group.keys())} is in two groups of param_shapes", where=folder)
        shapes |= group
    return scattered_parts(flats, shapes, folder), []


def _flat_groups(file: StoredFile) -> Flat:
    groups = optimizer_state(file).get(_FLAT_GROUPS)
    if not isinstance(groups, list | tuple) or not all(isinstance(group, LazyTensor) for group in groups):
        raise DamagedError(f"{_FLAT_GROUPS} is no list of tensors", where=file.path)
    return Flat({f"{file.path.name}, group {number}": group for number, group in enumerate(groups)}, file.path)


def frozen_parameters(files: Sequence[StoredFile]) -> Rebuilt:
    """The frozen parameters: whole in the model file of stages 0 to 2, in parts of each rank's with stage 3.

    Raises:
        DamagedError: a part is missing, or has another number of elements than the recorded shape.
    """
    result = Rebuilt()
    said = files[0].state.get("frozen_param_shapes")
    shapes = shapes_of(said, "frozen_param_shapes", files[0].path) if said is not None else {}
    for name, shape in shapes.items():
        parts = {f"frozen {name} of {file.path.name}": _fragment(file, name) for file in files}
        first = next(iter(parts.values()))
        if first.shape == shape:
            result.tensors[name] = first
            result.sources[next(iter(parts))] = first
        else:
            flats = [Flat({key: part}, files[0].path) for key, part in parts.items()]
            result.add(scattered_parts(flats, {name: shape}, files[0].path))
    return result


def _fragment(file: StoredFile, name: str) -> LazyTensor:
    fragments = file.state.get("frozen_param_fragments")
    tensor = fragments.get(name) if isinstance(fragments, dict) else None
    if not isinstance(tensor, LazyTensor):
        raise DamagedError(f"the frozen parameter {name} is missing (frozen_param_fragments)", where=file.path)
    return tensor


def shared_in(ranks: RankFiles) -> dict[str, str]:
    """Names that share another one's parameter, by all rank files."""
    shared: dict[str, str] = {}
    for file in ranks.files:
        shared |= shared_names(file.state, file.path)
    return shared


def _add_rest(result: Masters, ranks: RankFiles, module: Module, folder: Path) -> None:
    """Add shared names, buffers, and what the optimizer does not have; in the order of the module."""
    tensors = result.rebuilt.tensors
    for name, theirs in module.tied.items():
        if theirs in tensors:
            tensors[name] = tensors.pop(theirs)
    shared = {name: kept for name, kept in shared_in(ranks).items() if kept in tensors}
    nowhere = {name for name in module.placeholders if name not in tensors and name not in shared}
    if nowhere and any("frozen_param_shapes" not in file.state for file in ranks.files):
        raise DamagedError(f"no file has the elements of {min(nowhere)}, which the model file names", where=folder)
    if nowhere:
        # All that has elements is recorded: trained parameters, and frozen ones that the run was not told to leave out.
        result.remarks.append(
            f"{len(nowhere)} parameters have no elements, and their shapes are not recorded: left out, the first is "
            f"{min(nowhere)}"
        )
    result.from_module = [
        name for name in module.tensors if name not in tensors and name not in shared and name not in nowhere
    ]
    order = [
        *(name for name in module.tensors if name not in nowhere),
        *(name for name in (*tensors, *shared) if name not in module.tensors),
    ]
    whole = dict(_in_order(order, tensors, shared, module))
    for name in result.from_module:
        tensor = module.tensors[name]
        if tensor.numel:
            result.rebuilt.sources[f"{name} of the module"] = tensor
    tensors.clear()
    tensors.update(whole)


def _in_order(
    order: Sequence[str], tensors: Mapping[str, LazyTensor], shared: Mapping[str, str], module: Module
) -> Iterator[tuple[str, LazyTensor]]:
    for name in order:
        if name in shared:
            yield name, tensors[shared[name]]
        elif name in tensors:
            yield name, tensors[name]
        elif name in module.tensors and (module.tensors[name].numel or not prod(module.tensors[name].shape)):
            yield name, module.tensors[name]
