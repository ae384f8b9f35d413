"""What people give for a checkpoint: a cache's root, a file of a folder, a folder of runs; and what is there instead.

- The Hub's cache: ``models--ORG--NAME`` with ``refs/main``, whose text is the name of the folder below ``snapshots``
  that is meant [huggingface_hub/file_download.py:get_pointer_path].
- ``pytorch_model.bin`` as a folder: ``zero_to_fp32.py`` takes a folder since DeepSpeed 0.16, and older recipes give it
  a file's name [deepspeed/utils/zero_to_fp32.py:convert_zero_checkpoint_to_fp32_state_dict].
- Runs: ``checkpoint-500`` [transformers/trainer_utils.py:PREFIX_CHECKPOINT_DIR], ``checkpoint_0`` [accelerate/
  accelerator.py:save_state], ``global_step500``, ``iter_0000500``, ``step-500``, ``epoch=1-step=500.ckpt``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamconv.containers.open_any import CHECKPOINT_SUFFIXES
from streamconv.core.errors import AmbiguousError, SourceError, StreamconvError, UnsupportedError
from streamconv.core.work_folder import JOURNAL, WORK_FOLDER
from streamconv.formats.common.faults import listed
from streamconv.formats.deepspeed.folder import tag_folder, tags_below
from streamconv.formats.huggingface.names import ADAPTER, CONFIG, WEIGHTS
from streamconv.formats.recorded import first_line, is_child_name
from streamconv.formats.source import SourceFormat
from streamconv.io.refusals import refusals

__all__ = ["Meant", "checkpoints_below", "meant_by", "unclaimed"]

_CACHE = re.compile(r"models--.+")
_STEP = re.compile(r"(?:checkpoint[-_]|global_step|iter_|step[-_]?)([0-9]{1,12})|.*\.ckpt")
_MOST_FOLDERS = 2000


@dataclass(frozen=True, slots=True)
class Meant:
    """The folder that is meant, and remarks on how it was found."""

    path: Path
    remarks: tuple[str, ...] = ()


def meant_by(path: Path) -> Meant:
    """The folder that is meant by ``path``, which nothing may claim.

    Raises:
        SourceError: there is no such folder, or it is a file.
        AmbiguousError: a cache has several snapshots, and nothing says which one is meant.
    """
    if path.is_file():
        raise _of_file(path)
    if not path.is_dir():
        raise SourceError("no such folder", where=path)
    if (path / "snapshots").is_dir() and (_CACHE.fullmatch(path.name) or (path / "blobs").is_dir()):
        snapshot, why = _snapshot(path)
        return Meant(snapshot, (f"a root of the Hub's cache: took the snapshot {snapshot.name[:12]}, {why}",))
    for name in () if tags_below(path) else (WEIGHTS[1], WEIGHTS[0]):
        inner = path / name
        if inner.is_dir() and any((inner / f"{each}{end}").exists() for each in WEIGHTS for end in ("", ".index.json")):
            return Meant(inner, (f"{name} is a folder: its files are read",))
    return Meant(path)


def _of_file(path: Path) -> SourceError:
    home = next((each for each in (path.parent, path.parent.parent) if (each / CONFIG).is_file()), path.parent)
    return SourceError(
        "a file, where the folder of a checkpoint is wanted",
        where=path,
        remedy=f"give {home}; or keep its names: --to safetensors",
    )


def _snapshot(path: Path) -> tuple[Path, str]:
    main = path / "refs" / "main"
    if main.is_file() and is_child_name(name := first_line(main)) and (path / "snapshots" / name).is_dir():
        return path / "snapshots" / name, "which refs/main names"
    there = sorted(child.name for child in (path / "snapshots").iterdir() if child.is_dir())
    if len(there) == 1:
        return path / "snapshots" / there[0], "the only one"
    if not there:
        raise SourceError("a root of the Hub's cache without a snapshot", where=path, remedy="download the model again")
    raise AmbiguousError(
        f"a root of the Hub's cache with {len(there)} snapshots, and no refs/main says which one is meant",
        where=path,
        remedy=f"give one of them: {listed((f'snapshots/{name}' for name in there), len(there))}",
    )


def checkpoints_below(path: Path, sources: Sequence[SourceFormat]) -> list[str]:
    """The names of the folders below ``path``, at most two deep, that a format claims, those of later steps
    first.
    """
    found: list[Path] = []
    for child in _folders(path):
        if any(source.claims(child) for source in sources):
            found.append(child)
            continue
        found += [inner for inner in _folders(child) if any(source.claims(inner) for source in sources)]
    return sorted((str(each.relative_to(path)) for each in found), key=_by_step)


def _folders(path: Path) -> Iterator[Path]:
    with refusals("list the folder", path):
        children = sorted(path.iterdir())[:_MOST_FOLDERS]
    return (child for child in children if child.is_dir() and not child.name.startswith("."))


def _by_step(name: str) -> tuple[str, int, str]:
    match = _STEP.fullmatch(name.rpartition("/")[2])
    number = match[1] if match and match[1] else None
    return (name[: -len(number)], -int(number), name) if number else (name, 0, name)


def unclaimed(place: Meant, sources: Sequence[SourceFormat]) -> StreamconvError:
    """The error for a folder that no format claims: what was seen there, and what may be meant."""
    path = place.path
    try:
        tag_folder(path, None)
    except StreamconvError as error:
        return error
    below = checkpoints_below(path, sources)
    if below:
        many = f"{len(below)} checkpoints are" if len(below) > 1 else "a checkpoint is"
        paths = listed((path / name for name in below), len(below))
        return AmbiguousError(
            f"no checkpoint itself: {many} below it", where=path, remedy=f"give {'one of ' * (len(below) > 1)}{paths}"
        )
    names = sorted(child.name for child in path.iterdir())
    if (path / WORK_FOLDER / JOURNAL).is_file():
        return SourceError(
            "a conversion into this folder has not finished, or is running: there is no checkpoint yet",
            where=path,
            remedy="run its command again: it goes on where it was",
        )
    return _described(path, names, sources)


def _described(path: Path, names: Sequence[str], sources: Sequence[SourceFormat]) -> StreamconvError:
    if not names:
        return SourceError("an empty folder", where=path)
    if any(name.startswith(ADAPTER) for name in names):
        return UnsupportedError(
            "an adapter (PEFT), which is no model by itself",
            where=path,
            remedy="name the model that it was trained on: --base FOLDER",
        )
    kinds = ", ".join(dict.fromkeys(source.title for source in sources))
    files = [name for name in names if name.endswith(CHECKPOINT_SUFFIXES)]
    seen = f"it has {listed(files or names, len(files or names))}"
    near = next((words for matches, words in _near(names) if matches), None)
    lacks = f"; {near}" if near else ""
    return SourceError(
        f"no checkpoint of {kinds}: {seen}{lacks}",
        where=path,
        remedy="give the folder that has the model's files"
        + ("; a file of tensors alone keeps its names: --to safetensors" if files else ""),
    )


def _near(names: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """(whether names are near those of a format, which one and what it lacks)."""
    has = set(names).__contains__
    yield (
        has(".metadata") or any(name.endswith(".distcp") for name in names),
        "torch.distributed's files are read as Megatron-Core's, which have metadata.json or common.pt",
    )
    yield (
        has(CONFIG),
        f"{CONFIG} is a Hugging Face model's, whose weights (model.safetensors, pytorch_model.bin, or their index) are "
        "not there",
    )
    yield (
        any(re.fullmatch(r"model-[0-9]+-of-[0-9]+\.safetensors", name) for name in names),
        "shards of a Hugging Face model without their index model.safetensors.index.json",
    )
    yield (
        has("zero_to_fp32.py") or has("latest"),
        "DeepSpeed wrote here, and the folder of its checkpoint (global_step*) is not there",
    )
