"""The files of Megatron-LM's checkpoints: the tracker, the iteration's folder, a folder for each rank.

``megatron/checkpointing.py:get_checkpoint_name`` of Megatron-LM: ``iter_0000003/mp_rank_01/model_optim_rng.pt``, with
the stage after the rank (``mp_rank_01_002``) if PP > 1 (v2.0), and the expert-parallel rank after that (core_v0.4).
From 2022-03 (37ca7859a1) to 2023-05 (49e4bd6857) runs with the distributed optimizer wrote ``model_rng.pt``, and
``optim.pt`` into a folder whose name ends with the data-parallel rank; since then ``distrib_optim.pt`` is beside the
model. Megatron-Core's ``torch_dist`` has ``.metadata`` in the iteration's folder, and no folder for a rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamconv.containers.dcp.metadata_reader import NAME as METADATA
from streamconv.core.errors import AmbiguousError, DamagedError, SourceError, UnsupportedError
from streamconv.core.layout import ParallelLayout, RankCoordinates
from streamconv.formats.recorded import RELEASE, first_line, tagged_folder
from streamconv.formats.source import Fact

__all__ = [
    "ARCHIVE",
    "CONFIG_FILE",
    "TRACKER",
    "RankFolders",
    "check_grid",
    "find_ranks",
    "folder_named",
    "holds_ranks",
    "is_distributed",
    "iteration_folders",
    "iteration_name",
    "rank_path",
    "resolve_folder",
]

CONFIG_FILE = "metadata.json"
"""Megatron-Core's description of a distributed checkpoint [``dist_checkpointing/core.py``]."""
TRACKER = "latest_checkpointed_iteration.txt"
ARCHIVE = "model_optim_rng"
_RANK = re.compile(r"mp_rank_([0-9]{1,6})(?:_([0-9]{1,6}))?(?:_([0-9]{1,6}))?")
_ITERATION = re.compile(r"iter_[0-9]+|release")
_MODEL_FILES = (f"{ARCHIVE}.pt", "model_rng.pt")
_OPTIMIZER_FILES = ("optim.pt", "distrib_optim.pt")
_COPY = "copy the missing files from the training run's storage"


@dataclass(frozen=True, slots=True)
class RankFolders:
    """The model file of each (tensor-parallel rank, stage) as a path below the iteration's folder, and the files of the
    optimizer.
    """

    files: Mapping[RankCoordinates, str]
    optimizer: tuple[Path, ...]

    @property
    def tp(self) -> int:
        """Tensor-parallel size by the folders."""
        return 1 + max(rank.tp for rank in self.files)

    @property
    def pp(self) -> int:
        """Pipeline-parallel size by the folders."""
        return 1 + max(rank.pp for rank in self.files)


def iteration_folders(path: Path) -> list[Path]:
    """The folders of iterations below a root: the one that the tracker names first, then by name."""
    found = sorted(child for child in path.iterdir() if _ITERATION.fullmatch(child.name) and child.is_dir())
    tracker = path / TRACKER
    named = folder_named(first_line(tracker)) if tracker.is_file() else None
    return sorted(found, key=lambda folder: folder.name != named)


def folder_named(word: str) -> str | None:
    """``iter_0000003`` for the tracker's 3, ``release`` for itself; None for any other word."""
    if word == RELEASE:
        return word
    return f"iter_{int(word):07d}" if re.fullmatch(r"[0-9]{1,12}", word) else None


def claims(path: Path) -> str | None:
    """What makes a folder one with rank folders, or the root of such; None if nothing does."""
    if not path.is_dir():
        return None
    if name := holds_ranks(path):
        return f"the folder {name}"
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    for folder in folders:
        if _ITERATION.fullmatch(folder.name) and (name := holds_ranks(folder)):
            return f"the folder {folder.name}/{name}"
    # Megatron-DeepSpeed writes a tracker too, beside `latest`.
    deepspeed = (path / "latest").is_file() or any(folder.name.startswith("global_step") for folder in folders)
    return f"the file {TRACKER}" if (path / TRACKER).is_file() and not deepspeed else None


def is_distributed(path: Path) -> bool:
    """Whether a folder is a distributed checkpoint itself, not a root of some."""
    return (path / METADATA).is_file() or ((path / CONFIG_FILE).is_file() and not (path / TRACKER).is_file())


def holds_ranks(path: Path) -> str | None:
    """The first of a folder's rank folders (``mp_rank_00``), None if it has none."""
    return next((folder.name for folder in _rank_folders(path)), None)


def _rank_folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if _RANK.fullmatch(child.name) and child.is_dir())


def resolve_folder(path: Path, tag: str | None) -> tuple[Path, Fact | None]:
    """The folder of one checkpoint, and what chose it: the tag or the tracker, None for the path itself.

    Raises:
        SourceError: it is not there.
        DamagedError: the tracker holds neither a number nor ``release``, or the tag is no folder's name.
        AmbiguousError: there is no tracker, and no tag either.
    """
    if not path.is_dir():
        raise SourceError("no such folder", where=path)
    tracker = path / TRACKER
    if tag is not None:
        return tagged_folder(path, tag, path), Fact(f"checkpoint {tag}", "--tag")
    if _rank_folders(path) or is_distributed(path):
        return path, None
    if not tracker.is_file():
        names = [child.name for child in sorted(path.iterdir()) if _ITERATION.fullmatch(child.name)]
        raise AmbiguousError(
            f"there is no {TRACKER} to say which checkpoint is meant",
            where=path,
            remedy=f"name one with --tag: {', '.join(names)}",
        )
    word = first_line(tracker)
    name = folder_named(word)
    if name is None:
        raise DamagedError(
            f"the tracker holds {word[:40]!r}, neither a number nor `release`",
            where=tracker,
            remedy="name the folder of the checkpoint with --tag",
        )
    return tagged_folder(path, name, tracker), Fact(f"checkpoint {name}", TRACKER)


def rank_path(iteration: int | None, layout: ParallelLayout, rank: RankCoordinates) -> str:
    """``iter_0000003/mp_rank_01_002/model_optim_rng.pt``; the stage is named only with PP > 1.

    A model that Megatron did not train has no iteration, and is in the folder ``release``
    [``megatron/training/checkpointing.py:get_checkpoint_name``].
    """
    suffix = f"_{rank.pp:03d}" if layout.pp > 1 else ""
    return f"{iteration_name(iteration)}/mp_rank_{rank.tp:02d}{suffix}/{ARCHIVE}.pt"


def iteration_name(iteration: int | None) -> str:
    """The name of an iteration's folder: ``iter_0000003``, or ``release`` without an iteration."""
    return RELEASE if iteration is None else f"iter_{iteration:07d}"


def find_ranks(folder: Path) -> RankFolders:
    """The model file of every rank and stage.

    Raises:
        DamagedError: a file is missing or there twice, or the folders' names contradict each other.
        UnsupportedError: the folders are those of an expert-parallel run.
    """
    files: dict[RankCoordinates, str] = {}
    optimizer: list[Path] = []
    first: dict[bool, Path] = {}
    for child in _rank_folders(folder):
        names = {file.name for file in child.iterdir()}
        optimizer += [child / name for name in _OPTIMIZER_FILES if name in names]
        model = _model_file(child, names)
        if model is None:
            continue
        rank, stage, expert = _numbers(child)
        if expert is not None:
            raise UnsupportedError(
                "a mixture of experts (MoE): the folder names an expert-parallel rank",
                where=child,
                remedy="only models without experts are translated so far",
            )
        first.setdefault(stage is not None, child)
        place = RankCoordinates(rank, stage or 0)
        if place in files or len(first) > 1:
            other = files[place].partition("/")[0] if place in files else first[stage is None].name
            raise DamagedError(
                f"{other} and {child.name} cannot belong to one checkpoint",
                where=folder,
                remedy="remove the folders that another run has left",
            )
        files[place] = f"{child.name}/{model}"
    if not files:
        raise DamagedError(f"no mp_rank_* folder with {' or '.join(_MODEL_FILES)}", where=folder, remedy=_COPY)
    found = RankFolders(dict(sorted(files.items())), tuple(optimizer))
    check_grid(folder, found, found.tp, found.pp)
    return found


def _numbers(folder: Path) -> tuple[int, int | None, int | None]:
    """The tensor-parallel rank, the stage and the expert-parallel rank in a folder's name."""
    numbers = iter(folder.name.removeprefix("mp_rank_").split("_"))
    rank, stage, expert = next(numbers), next(numbers, None), next(numbers, None)
    return int(rank), stage if stage is None else int(stage), expert if expert is None else int(expert)


def _model_file(folder: Path, names: set[str]) -> str | None:
    """The name of the model's file in a rank's folder; None if only a data-parallel rank's optimizer is in it."""
    models = [name for name in _MODEL_FILES if name in names]
    if len(models) > 1:
        raise DamagedError(
            f"{' and '.join(models)}: no release of Megatron-LM writes both",
            where=folder,
            remedy="remove the older one",
        )
    if models:
        return models[0]
    if "optim.pt" in names and folder.with_name(folder.name.rpartition("_")[0]).is_dir():
        return None
    raise DamagedError(f"{folder.name}/{_MODEL_FILES[0]} is missing", where=folder.parent, remedy=_COPY)


def check_grid(folder: Path, found: RankFolders, tp: int, pp: int) -> None:
    """Check that every rank and stage of a ``tp`` x ``pp`` run is there, and no other.

    Raises:
        DamagedError: files are missing (the first is named), or there are more.
    """
    if found.tp > tp or found.pp > pp:
        raise DamagedError(
            f"args say TP {tp} x PP {pp}, the folders are those of TP {found.tp} x PP {found.pp}",
            where=folder,
            remedy="remove the folders that another run has left",
        )
    missing = tp * pp - len(found.files)
    if missing:
        # tp and pp may be any numbers, so only the first gap is looked for.
        ranks = (RankCoordinates(rank, stage) for rank in range(tp) for stage in range(pp))
        rank = next(rank for rank in ranks if rank not in found.files)
        first = f"mp_rank_{rank.tp:02d}{f'_{rank.pp:03d}' if pp > 1 else ''}/{_MODEL_FILES[0]}"
        raise DamagedError(
            f"{missing} of {tp * pp} files are missing, the first is {first}", where=folder, remedy=_COPY
        )
