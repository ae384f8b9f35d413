"""One checkpoint of Megatron-LM with a ``torch`` file for each rank: what legacy and Megatron-Core have in common.

Sources: ``megatron/checkpointing.py:save_checkpoint`` of Megatron-LM v2.0 to core_v0.6, ``megatron/training/``
since. A rank's file has one model, or one for each of its virtual stages: ``model0``, ``model1`` and on. Layers are
numbered in their stage, or in their chunk of it; chunk 0 of all stages comes before chunk 1 of all stages
[``megatron/core/transformer/transformer_layer.py:get_transformer_layer_offset``].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.reader import leaves_of
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError
from streamconv.core.layout import FIRST_RANK, RankCoordinates
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.shards import join_ranks
from streamconv.formats.megatron.folder import RankFolders, check_grid, find_ranks, resolve_folder
from streamconv.formats.options import TrainingSourceOptions
from streamconv.formats.recorded import find_iteration, recorded_args, true_vocabulary
from streamconv.formats.source import Dropped, Fact, StoredModel, positive_int
from streamconv.models.parameter import ParameterId, Section

__all__ = ["Ranks", "StageTensors", "left_behind", "model_names", "open_ranks", "to_model"]

_MODEL = re.compile(r"model[0-9]*")
_SAME_ARGS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "padded_vocab_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
)
_RANDOM = "random number state: parameters only"
_SCHEDULER = "scheduler state: parameters only"
_REASONS = {
    "optimizer": "optimizer state: parameters only",
    "args": "a tensor among the arguments: not plain data",
    "rng_state": _RANDOM,
    "random_rng_state": _RANDOM,
    "np_rng_state": _RANDOM,
    "torch_rng_state": _RANDOM,
    "cuda_rng_state": _RANDOM,
    "rng_tracker_states": _RANDOM,
    "lr_scheduler": _SCHEDULER,
    "opt_param_scheduler": _SCHEDULER,
}


@dataclass(slots=True)
class StageTensors:
    """The tensors in one chunk of a stage.

    Attributes:
        tensors: its parameters; their layers are numbered inside the chunk.
        copy: the last stage's copy of the word embedding, for a tied head, by its keys.
        extra: tensors of extra state (of FP8), which are not converted.
        ages: the releases or specs that the names show.
    """

    tensors: dict[ParameterId, LazyTensor] = field(default_factory=dict)
    copy: dict[str, LazyTensor] = field(default_factory=dict)
    extra: list[LazyTensor] = field(default_factory=list)
    ages: set[str] = field(default_factory=set)

    @property
    def num_layers(self) -> int:
        """The number of layers in the chunk."""
        return len({parameter.layer for parameter in self.tensors if parameter.section is Section.LAYER})

    def check_layers(self, where: Path) -> None:
        """Check that the layers are numbered from 0 without a gap.

        Raises:
            DamagedError: they are not 0, 1, 2 and on.
        """
        numbers = sorted({parameter.layer for parameter in self.tensors if parameter.section is Section.LAYER})
        if numbers != list(range(len(numbers))):
            raise DamagedError(f"the stage's layers are numbered {numbers[:8]}, not from 0 without a gap", where=where)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The opened files of all ranks. ``parts`` has the chunks of each rank, ``args`` the first rank's arguments."""

    folder: Path
    chosen: Fact | None
    found: RankFolders
    files: Mapping[RankCoordinates, StoredFile]
    parts: Mapping[RankCoordinates, tuple[StageTensors, ...]]
    args: Mapping[str, Any] | None

    @property
    def vpp(self) -> int:
        """The number of chunks of each rank."""
        return len(self.parts[FIRST_RANK])

    @property
    def state(self) -> Mapping[str, Any]:
        """The first rank's state."""
        first: Mapping[str, Any] = self.files[FIRST_RANK].state
        return first

    def chunks(self, rank: int) -> Iterator[tuple[int, int, StageTensors]]:
        """(stage, chunk, its tensors) of a tensor-parallel rank in the order of the layers."""
        for chunk in range(self.vpp):
            for stage in range(self.found.pp):
                yield stage, chunk, self.parts[RankCoordinates(rank, stage)][chunk]

    def path(self, rank: RankCoordinates) -> Path:
        """The file of a rank."""
        return self.folder / self.found.files[rank]


def open_ranks(
    path: Path,
    options: TrainingSourceOptions,
    refuse: Callable[[Mapping[str, Any], Path], None],
    parse: Callable[[StoredFile, str], StageTensors],
) -> Ranks:
    """Open every rank's file, metadata only.

    Args:
        path: the root (with ``latest_checkpointed_iteration.txt``) or an iteration's folder.
        options: ``tag`` is the name of another ``iter_*`` folder, or ``release``.
        refuse: raises for arguments (given with the folder) that are not translated.
        parse: the tensors of one entry (``model``, ``model0``) of a file.

    Raises:
        SourceError: it is not there.
        AmbiguousError: the root does not name one of its checkpoints, and no tag does.
        UnsupportedError: it is of a kind that is refused by name.
        DamagedError: files are missing, broken or contradict each other.
    """
    folder, chosen = resolve_folder(path, options.tag)
    folders = find_ranks(folder)
    files = {place: open_torch(folder / name) for place, name in folders.files.items()}
    _check_same_run(folder, list(files.values()))
    first = files[FIRST_RANK]
    args = recorded_args(first.state, first.path)
    refuse(args or {}, folder)
    sizes = [positive_int(args, f"{kind}_model_parallel_size", folder) for kind in ("tensor", "pipeline")]
    check_grid(folder, folders, sizes[0] or folders.tp, sizes[1] or folders.pp)
    names = model_names(first)
    said = positive_int(args, "virtual_pipeline_model_parallel_size", folder) or 1
    if said != len(names) and args is not None:
        raise DamagedError(f"args say {said} virtual stages, the files have {len(names)}", where=first.path)
    parts = {}
    for place, file in files.items():
        if model_names(file) != names:
            raise DamagedError(f"its models are {model_names(file)}, {names} on the first rank", where=file.path)
        parts[place] = tuple(parse(file, name) for name in names)
    return Ranks(folder, chosen, folders, files, parts, args)


def model_names(file: StoredFile) -> list[str]:
    """The names of the models in a rank's file, in order: ``model``, or ``model0``, ``model1`` and on.

    Raises:
        DamagedError: there is none, or a number is missing.
    """
    state = file.state if isinstance(file.state, dict) else {}
    names = sorted((key for key in state if isinstance(key, str) and _MODEL.fullmatch(key)), key=_number)
    if names != ["model"] and (not names or names != [f"model{chunk}" for chunk in range(len(names))]):
        words = f"the models {', '.join(names)[:80]}" if names else "no entry `model`"
        raise DamagedError(f"it has {words}", where=file.path, remedy="copy the file again from its storage")
    return names


def _number(name: str) -> tuple[int, str]:
    return len(name), name


def _check_same_run(folder: Path, files: Sequence[StoredFile]) -> None:
    """Check that all ranks have the same iteration, version and arguments."""
    records = []
    for file in files:
        if not isinstance(file.state, dict):
            raise DamagedError("a rank's file that is not a dictionary", where=file.path)
        args = recorded_args(file.state, file.path)
        record = {name: file.state.get(name) for name in ("iteration", "checkpoint_version")}
        record |= {"args": "there" if args else "not there"} | {n: (args or {}).get(n) for n in _SAME_ARGS}
        records.append(record)
    for file, record in zip(files, records, strict=True):
        for name, mine in record.items():
            if mine != records[0][name]:
                raise DamagedError(
                    f"{name} is {str(mine)[:40]} in {file.path.relative_to(folder)}, "
                    f"but {str(records[0][name])[:40]} in {files[0].path.relative_to(folder)}",
                    where=folder,
                    remedy="the files are of different runs or steps: keep those of one",
                )


def to_model(
    ranks: Ranks, options: TrainingSourceOptions, format_name: str, args: Mapping[str, Any] | None
) -> StoredModel:
    """The model of all ranks, stages and chunks.

    ``format_name`` is the name of the layout, ``args`` are the translated arguments.

    Raises:
        DamagedError: ranks or stages contradict each other or the arguments.
    """
    folders, folder = ranks.found, ranks.folder
    tensors, owned = _placed(ranks)
    stages = tuple(map(len, owned))
    return StoredModel(
        path=folder,
        format=format_name,
        tp=folders.tp,
        num_layers=sum(stages),
        tensors=tensors,
        stages=stages,
        owned=tuple(map(tuple, owned)),
        pp=folders.pp,
        vpp=ranks.vpp,
        args=args,
        iteration=find_iteration(folder, ranks.state, options.iteration),
        vocab_size=true_vocabulary(ranks.state),
        qkv=None,
        facts=((ranks.chosen,) if ranks.chosen is not None else ()) + tuple(_layout_facts(ranks, stages)),
        warnings=tuple(_against_records(ranks, options, sum(stages))),
        named={file.path: file.globals for file in ranks.files.values()},
    )


def _against_records(ranks: Ranks, options: TrainingSourceOptions, num_layers: int) -> Iterator[str]:
    """Warnings: the user's iteration differs from the recorded one, or there are no arguments."""
    recorded = ranks.state.get("iteration")
    if options.iteration is not None and recorded not in (None, options.iteration):
        yield f"--iteration {options.iteration} against the recorded {recorded}"
    if ranks.args is None:
        yield "no training arguments: sizes come from the tensors, the rest from options"
    elif (said := ranks.args.get("num_layers", num_layers)) != num_layers:
        raise DamagedError(f"args say {said} layers, {num_layers} are there", where=ranks.folder)


def _placed(ranks: Ranks) -> tuple[dict[ParameterId, tuple[LazyTensor, ...]], list[list[int]]]:
    """The shards of all ranks by place, and the layers of each stage, numbered over the whole model."""
    folders, folder = ranks.found, ranks.folder
    tensors: dict[ParameterId, tuple[LazyTensor, ...]] = {}
    owned: list[list[int]] = [[] for _ in range(folders.pp)]
    for stage, chunk, part in ranks.chunks(0):
        places = [RankCoordinates(rank, stage) for rank in range(folders.tp)]
        peers = [ranks.parts[place][chunk].tensors for place in places]
        joined = join_ranks(peers, [folders.files[place] for place in places], folder)
        before = sum(map(len, owned))
        for local, shards in joined.items():
            place = replace(local, layer=local.layer + before) if local.section is Section.LAYER else local
            if place in tensors:
                raise DamagedError(f"{place.key} is on two stages, the later one is {stage}", where=folder)
            tensors[place] = shards
        owned[stage] += range(before, before + part.num_layers)
    return tensors, owned


def _layout_facts(ranks: Ranks, stages: Sequence[int]) -> Iterator[Fact]:
    folders = ranks.found
    said = ", as args say" if ranks.args is not None else ""
    yield Fact(f"TP {folders.tp} x PP {folders.pp}", f"{len(folders.files)} rank folders{said}")
    yield Fact(f"stages of {','.join(map(str, stages))} layers", "the layers in each stage's files")
    if ranks.vpp > 1:
        names = f"model0 to model{ranks.vpp - 1}"
        yield Fact(f"{ranks.vpp} virtual stages on each: chunk 0 of all stages, then chunk 1, ..", names)


def left_behind(ranks: Ranks) -> list[Dropped]:
    """What is not converted, with the reason: optimizer files, and tensors in rank files that are no parameters."""
    dropped, folders = [], ranks.found
    if folders.optimizer:
        nbytes = sum(path.stat().st_size for path in folders.optimizer)
        names = " and ".join(sorted({path.name for path in folders.optimizer}))
        dropped.append(Dropped(f"{len(folders.optimizer)} optimizer files ({names})", nbytes, _REASONS["optimizer"]))
    groups: dict[str, list[int]] = {}
    for file in ranks.files.values():
        for key in file.state:
            if not (isinstance(key, str) and _MODEL.fullmatch(key)):
                sizes = [tensor.nbytes for _, tensor in leaves_of(LazyTensor, file.state[key], str(file.path))]
                groups.setdefault(str(key), []).extend(sizes)
    for group, sizes in groups.items():
        if sizes:
            name = f"{len(sizes)} tensors of {group} in {len(folders.files)} rank files"
            dropped.append(Dropped(name, sum(sizes), _REASONS.get(group, "not a parameter")))
    extra = [tensor.nbytes for parts in ranks.parts.values() for part in parts for tensor in part.extra]
    if extra:
        dropped.append(Dropped(f"{len(extra)} tensors of extra state", sum(extra), "of FP8: parameters only"))
    return dropped
