"""Which folder below a root holds a DeepSpeed checkpoint, and what kind of run wrote it."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from streamconv.containers.open_any import CHECKPOINT_SUFFIXES
from streamconv.containers.pickles.machine import Record
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import AmbiguousError, SourceError, StorageError, StreamconvError, UsageError
from streamconv.formats.common.faults import listed
from streamconv.formats.deepspeed.layer_roles import is_megatron, is_neox
from streamconv.formats.deepspeed.names import LATEST, FolderNames, is_optimizer_file, parse_names
from streamconv.formats.recorded import first_line, is_child_name, iteration_of, tagged_folder
from streamconv.io.refusals import refusals

__all__ = [
    "ZERO",
    "RunKind",
    "Tagged",
    "folder_of_kind",
    "is_universal",
    "kind_of",
    "names_in",
    "resolve_tag",
    "strays_in",
    "tag_folder",
    "tag_or_none",
    "tags_below",
]

ZERO = "zero"
"""The folder of a universal checkpoint's parameters [``deepspeed/checkpoint/ds_to_universal.py``]."""
_NEWEST = ("latest", "latest_universal")


class RunKind(Enum):
    """Whose names a DeepSpeed checkpoint's parameters have."""

    MEGATRON = "Megatron-DeepSpeed"
    NEOX = "GPT-NeoX"
    OWN = "a model of its own"


class Tagged(NamedTuple):
    """The folder of a checkpoint's files, and a remark on how it was found, None if that needs none."""

    folder: Path
    remark: str | None


def resolve_tag(path: Path, tag: str | None) -> Path:
    """The folder of :func:`tag_folder`, without the remark."""
    return tag_folder(path, tag).folder


def tag_folder(path: Path, tag: str | None) -> Tagged:
    """The folder that holds a checkpoint's files: the one that ``tag`` or ``latest`` names below ``path``, or else
    ``path`` itself, or the only one below it that has such files.

    Raises:
        SourceError: the folder, or the tag's folder, is not there.
        AmbiguousError: nothing says which of several is meant.
        DamagedError: ``latest`` names something that is not a folder directly below.
    """
    if not path.is_dir():
        raise SourceError("no such folder", where=path)
    if tag is not None and not is_child_name(tag):
        raise UsageError(
            f"--tag {tag[:80]}: not the name of a folder", remedy="give the name of a folder directly below"
        )
    if tag is not None:
        return Tagged(tagged_folder(path, tag, path / LATEST), None)
    for record in _NEWEST:
        if (path / record).is_file() and (name := first_line(path / record).rstrip("/")):
            # The root of a universal checkpoint has both records, and may have only one of the folders.
            is_there = is_child_name(name) and (path / name).is_dir()
            if record == LATEST and not is_there and (path / _NEWEST[1]).is_file():
                continue
            return Tagged(tagged_folder(path, name, path / record), None)
    if _is_checkpoint(path):
        return Tagged(path, None)
    below = tags_below(path)
    if len(below) > 1:
        raise AmbiguousError(
            f"{len(below)} checkpoints are there, and no file `{LATEST}` says which one is meant",
            where=path,
            remedy=f"name one with --tag: {', '.join(below)}",
        )
    if not below:
        return Tagged(path, None)
    state = "is empty" if (path / LATEST).is_file() else "is missing"
    return Tagged(path / below[0], f"`{LATEST}` {state}: took {below[0]}, the only checkpoint there")


def tag_or_none(path: Path) -> Path | None:
    """The folder of :func:`tag_folder`, None if nothing says which it is.

    Raises:
        StorageError: the system refused to look.
    """
    try:
        return tag_folder(path, None).folder
    except StorageError:
        raise
    except StreamconvError:
        return None


def folder_of_kind(path: Path, kind: RunKind) -> Path | None:
    """The folder of :func:`tag_folder`, if the checkpoint in it is of this kind; else None.

    Raises:
        StorageError: the system refused to look.
    """
    folder = tag_or_none(path) if path.is_dir() else None
    return folder if folder is not None and kind_of(folder) is kind else None


def tags_below(path: Path) -> list[str]:
    """The names of the folders directly below ``path`` that have a DeepSpeed checkpoint's files, by their steps."""
    with refusals("list the folder", path):
        below = [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    tags = [child.name for child in below if _is_checkpoint(child)]
    return sorted(tags, key=lambda name: (iteration_of(name) or 0, name))


def names_in(folder: Path) -> FolderNames:
    """The files of a folder, sorted by their names.

    Raises:
        StorageError: the system refused to list it.
    """
    with refusals("list the folder", folder):
        return parse_names(child.name for child in folder.iterdir())


def _is_checkpoint(folder: Path) -> bool:
    names = names_in(folder)
    return bool(names.model_files or names.optimizer or names.experts) or is_universal(folder)


def is_universal(folder: Path) -> bool:
    """Whether a folder is a universal checkpoint."""
    return (folder / ZERO).is_dir() and next((folder / ZERO).glob("*/fp32.pt"), None) is not None


def strays_in(folder: Path, names: FolderNames) -> list[str]:
    """A warning of files of tensors in a tag's folder that are none of DeepSpeed's."""
    strays = [
        name
        for name in names.others
        if name.endswith(CHECKPOINT_SUFFIXES) and not is_optimizer_file(name) and (folder / name).is_file()
    ]
    if not strays:
        return []
    return [f"{listed(strays, len(strays))}: no file of DeepSpeed's engine, and not read"]


def kind_of(folder: Path) -> RunKind | None:
    """Whose names the parameters in a tag's folder have; None if it is no DeepSpeed checkpoint.

    Layer 0 of Megatron-DeepSpeed is a cast without parameters and has no file [``megatron/model/gpt_model.py:
    GPTModelPipe._to_float16`` of both forks, since 8a132ced]; GPT-NeoX's is the embedding. What cannot be opened is
    passed over: the reader says why.
    """
    names = names_in(folder)
    looked_at = [*names.layers.values(), *names.ranks.values()]
    with refusals("look at the files", folder):
        states = [(folder / name).stat() for name in looked_at]
    return _kind_of(folder, tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states))


@lru_cache(maxsize=64)
def _kind_of(folder: Path, _: tuple[tuple[int, int, int], ...]) -> RunKind | None:
    """As :func:`kind_of`, which several formats ask of one folder; the second argument is another if files change."""
    names = names_in(folder)
    if names.layers:
        return _kind_of_pipeline(folder, names)
    if is_universal(folder) or names.zero3:
        return RunKind.OWN
    if names.ranks:
        module = _state(folder / names.ranks[min(names.ranks)]).get("module")
        nested = isinstance(module, dict) and isinstance(module.get("language_model"), dict)
        return RunKind.MEGATRON if nested else RunKind.OWN
    return RunKind.OWN if names.optimizer or names.experts else None


def _kind_of_pipeline(folder: Path, names: FolderNames) -> RunKind:
    keys = []
    for _, name in sorted((place, name) for place, name in names.layers.items() if place[1] == 0):
        state = _state(folder / name)
        keys.append(frozenset(map(str, state)))
        if is_megatron(keys[-1:]) and 0 not in names.layer_indices:
            return RunKind.MEGATRON
    readable = [found for found in keys if found]
    if not readable:
        return RunKind.NEOX if 0 in names.layer_indices else RunKind.MEGATRON
    if is_neox(readable):
        return RunKind.NEOX
    rank = _state(folder / names.ranks[min(names.ranks)]) if names.ranks else {}
    return RunKind.MEGATRON if isinstance(rank.get("args"), Record) else RunKind.OWN


def _state(path: Path) -> dict[object, object]:
    try:
        state = open_torch(path).state
    except StorageError:
        raise
    except StreamconvError:
        return {}
    return state if isinstance(state, dict) else {}
