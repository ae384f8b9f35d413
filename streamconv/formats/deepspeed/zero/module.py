"""The model as it computes, in the model files: ``module`` of the rank files, layer files, files of experts.

``module`` is a state dict by the names of the model's own modules. Under the pipeline engine each layer has a file, in
which names lack the layer's number [deepspeed/runtime/pipe/module.py:save_state_dict]; with experts ``module`` holds
the stage [deepspeed/runtime/engine.py:_save_moe_checkpoint]. With ZeRO stage 3 it has buffers, and parameters of no
elements in place of the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamconv.containers.state_dict import state_dict_tensors
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.replica import Replica
from streamconv.formats.common.faults import COPY_AGAIN, Faults, listed
from streamconv.formats.deepspeed.grid import check_experts
from streamconv.formats.deepspeed.layer_files import open_layer_files
from streamconv.formats.deepspeed.names import FolderNames
from streamconv.formats.deepspeed.rank_files import RankFiles
from streamconv.formats.deepspeed.zero.partitions import EXPERT
from streamconv.formats.deepspeed.zero.recorded import buffer_names, groups_of, shapes_of, shared_names
from streamconv.formats.deepspeed.zero.steps import check_engine_steps

__all__ = ["Module", "open_module"]

_TIED = "tied_modules."


@dataclass(frozen=True, slots=True)
class Module:
    """The tensors of a model's files by name.

    ``buffers`` are names of persistent buffers, ``placeholders`` parameters of no elements whose recorded shape has
    some. ``replicas`` are what several stages hold. ``tied`` gives the names of a pipeline's
    shared modules in the optimizer, by the names here.
    """

    tensors: dict[str, LazyTensor]
    files: tuple[StoredFile, ...]
    buffers: frozenset[str] = frozenset()
    placeholders: frozenset[str] = frozenset()
    replicas: tuple[Replica, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    stages: int = 1


def open_module(folder: Path, names: FolderNames, ranks: RankFiles) -> Module:
    """Open the model's files, metadata only.

    Raises:
        UnsupportedError: tensor-parallel ranks hold shards of parameters: nothing says how they are joined.
        DamagedError: files are missing, broken or contradict each other.
    """
    _check_one_stage(folder, names)
    check_engine_steps(ranks.files)
    recorded = _recorded_shapes(ranks)
    files: list[StoredFile] = list(ranks.files)
    tied: dict[str, str] = {}
    # With stage 3 each data-parallel rank has the same.
    tensors, replicas = _of_stages(ranks.files if names.ranks else ranks.files[:1], folder)
    if names.layers:
        layers = _layers(folder, names)
        files += layers.values()
        for index, file in layers.items():
            held = state_dict_tensors(file.state, file.path)
            tensors |= {f"{index}.{name}": tensor for name, tensor in held.items()}
        tied = _tied_names(layers, recorded)
        _check_recorded(folder, names, recorded)
    for name, file, tensor in _experts(folder, names, ranks):
        files.append(file)
        tensors[name] = tensor
    buffers = frozenset(name for file in ranks.files for name in buffer_names(file.state))
    empty = {name for name, tensor in tensors.items() if not tensor.numel}
    _check_shapes(tensors, recorded, folder)
    _check_shared(tensors, ranks)
    placeholders = {name for name in empty if _numel(recorded.get(name)) or (names.zero3 and name not in buffers)}
    return Module(
        tensors, tuple(files), buffers, frozenset(placeholders), tuple(replicas), tied, max(1, len(names.ranks))
    )


def _check_one_stage(folder: Path, names: FolderNames) -> None:
    """Check that the model files are of one stage of ZeRO."""
    if names.ranks and names.zero3:
        one, other = names.ranks[min(names.ranks)], names.zero3[min(names.zero3)]
        raise DamagedError(
            f"model files of two runs are there: {other} is of ZeRO stage 3, {one} is of another stage",
            where=folder,
            remedy="move those of the run that is not meant out of the folder, its optimizer files too",
        )


def _of_stages(holders: Sequence[StoredFile], folder: Path) -> tuple[dict[str, LazyTensor], list[Replica]]:
    """The tensors in ``module`` of each stage's file, and what several stages hold."""
    tensors: dict[str, LazyTensor] = {}
    replicas: list[Replica] = []
    for file in holders:
        for name, tensor in _state_dict(file).items():
            if name not in tensors:
                tensors[name] = tensor
            elif name.startswith(_TIED):
                copies = tensors[name], tensor
                replicas.append(Replica(f"{name} in {file.path.name}", copies, "the first stage's", True))
            else:
                raise UnsupportedError(
                    f"{len(holders)} model-parallel ranks have {name} each: a tensor-parallel run of a model that is "
                    "not Megatron's, and nothing says how its shards are joined",
                    where=folder,
                    remedy="make a universal checkpoint of it with DeepSpeed's ds_to_universal, and give that",
                )
    return tensors, replicas


def _check_shapes(tensors: Mapping[str, LazyTensor], recorded: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Check that the parameters of the module have the recorded shapes; an expert is recorded by another number."""
    for name, tensor in tensors.items():
        shape = recorded.get(name, tensor.shape)
        if tensor.numel and tensor.shape != shape and not EXPERT.fullmatch(name):
            words = f"{name} is {tensor.shape} in the module, and recorded as {shape} (param_shapes)"
            raise DamagedError(words, where=folder, remedy="are all files of one run and one step?")


def _check_shared(tensors: Mapping[str, LazyTensor], ranks: RankFiles) -> None:
    """Check that names that share a parameter have tensors of one shape."""
    for file in ranks.files:
        for name, kept in shared_names(file.state, file.path).items():
            one, other = tensors.get(name), tensors.get(kept)
            if one is not None and other is not None and one.numel and other.numel and one.shape != other.shape:
                words = f"{name} {one.shape} is said to share {kept} {other.shape} (shared_params)"
                raise DamagedError(words, where=file.path)


def _numel(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and all(shape)


def _recorded_shapes(ranks: RankFiles) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters that the model files record, frozen ones included."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in ranks.files:
        for group in groups_of(file.state, file.path) or ():
            shapes |= group
        frozen = file.state.get("frozen_param_shapes")
        shapes |= shapes_of(frozen, "frozen_param_shapes", file.path) if frozen is not None else {}
    return shapes


def _state_dict(file: StoredFile) -> dict[str, LazyTensor]:
    """The tensors of a rank's ``module`` by their names."""
    module = file.state.get("module")
    if module is not None and not isinstance(module, dict):
        raise DamagedError("`module` in a rank's file is no state dict", where=file.path)
    return state_dict_tensors(module or {}, file.path)


def _layers(folder: Path, names: FolderNames) -> dict[int, StoredFile]:
    """The file of each layer of a user's own pipeline."""
    ranks = {rank for _, rank in names.layers}
    if len(ranks) > 1:
        raise UnsupportedError(
            f"a pipeline of own modules with {len(ranks)} tensor-parallel ranks: nothing says how their shards are "
            "joined",
            where=folder,
            remedy="make a universal checkpoint of it with DeepSpeed's ds_to_universal, and give that",
        )
    opened = open_layer_files(folder, names, Faults())
    return {index: file for index, by_rank in opened.items() for file in by_rank.values()}


def _check_recorded(folder: Path, names: FolderNames, recorded: Mapping[str, object]) -> None:
    """Check that each layer that has parameters by ``param_shapes`` has a file."""
    numbers = {int(head) for name in recorded if (head := name.partition(".")[0]).isascii() and head.isdecimal()}
    lost = [f"layer_{number:02d}" for number in sorted(numbers - set(names.layer_indices))]
    if lost:
        words = f"no file has {listed(lost, len(lost))}, whose parameters the mp_rank files name (param_shapes)"
        raise DamagedError(words, where=folder, remedy=COPY_AGAIN)


def _tied_names(layers: Mapping[int, StoredFile], recorded: Mapping[str, object]) -> dict[str, str]:
    """The optimizer's names of shared modules (``tied_modules.KEY.weight``) by the names in the layer files, which are
    those of the first layer that has the same names and none of its own in the optimizer.
    """
    numbered = {name.partition(".")[0] for name in recorded}
    modules: dict[str, set[str]] = {}
    for name in recorded:
        if name.startswith(_TIED):
            key, _, rest = name.removeprefix(_TIED).partition(".")
            modules.setdefault(key, set()).add(rest)
    found: dict[str, str] = {}
    for key, keys in modules.items():
        match = [index for index, file in layers.items() if str(index) not in numbered and keys <= set(file.tensors())]
        if match:
            found |= {f"{min(match)}.{rest}": f"{_TIED}{key}.{rest}" for rest in keys}
    return found


def _experts(folder: Path, names: FolderNames, ranks: RankFiles) -> Iterator[tuple[str, StoredFile, LazyTensor]]:
    """(name, file, tensor) of every expert; a name has the expert's number in the whole model."""
    check_experts(folder, names, ranks.experts, Faults())
    seen: set[str] = set()
    for _, name in sorted(names.experts.items()):
        file = open_torch(folder / name)
        for key, tensor in state_dict_tensors(file.state, file.path).items():
            if key in seen:
                raise DamagedError(f"{key} is in two files of experts", where=file.path)
            seen.add(key)
            yield key, file, tensor
