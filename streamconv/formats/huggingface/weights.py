"""The files of a Hugging Face model's tensors: one, or shards and their index.

Files are looked for in the order of ``transformers/modeling_utils.py:_get_resolved_checkpoint_files``. The index is
``{"metadata": {"total_size"}, "weight_map": {tensor: file}}``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from streamconv.containers.json_file import read_entries
from streamconv.containers.open_any import open_any
from streamconv.containers.state_dict import state_dict_tensors
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError, SourceError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import Faults, listed
from streamconv.formats.huggingface.names import INDEX_SUFFIX, WEIGHTS
from streamconv.formats.recorded import is_child_name

__all__ = ["Disagreements", "Weights", "check_shards", "open_weights", "read_index", "weight_files"]

_MAX_INDEX_NBYTES = 64 << 20
_AGAIN = "fetch it again"


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's tensors by name, and the files that hold them.

    ``where`` is the index or the single file, ``words`` describes it, ``others`` are weight files that are not read,
    ``doubts`` are warnings of what the index and its shards do not agree on, ``lost`` names that it has, and no file.
    """

    tensors: dict[str, LazyTensor]
    files: tuple[StoredFile, ...]
    where: Path
    words: str
    others: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disagreements:
    """What an index and its shards do not agree on, each in words, empty if there is none: tensors that the index does
    not name, that are in another file than it says, and that are in no file.
    """

    unlisted: str
    moved: str
    lost: str


def weight_files(folder: Path) -> list[str]:
    """The weight files and indexes in a folder; the first is the one to read."""
    return [
        name
        for kind in WEIGHTS
        for name, is_there in ((kind, Path.is_file), (kind + INDEX_SUFFIX, Path.exists))
        if is_there(folder / name)
    ]


def open_weights(folder: Path) -> Weights:
    """Open a model's files, metadata only.

    Raises:
        SourceError: the folder has no weights.
        DamagedError: a file is missing or broken, or the index and its shards disagree.
    """
    present = weight_files(folder)
    if not present:
        raise SourceError(
            "no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards", where=folder
        )
    chosen, *others = present
    if not chosen.endswith(INDEX_SUFFIX):
        file = open_any(folder / chosen)
        tensors = state_dict_tensors(file.state, file.path)
        others = [name for name in others if name != chosen + INDEX_SUFFIX or not _names_only(folder / name, chosen)]
        return Weights(tensors, (file,), file.path, chosen, tuple(others))
    index, strict = folder / chosen, Faults()
    weight_map = read_index(index, strict)
    files = {name: open_any(folder / name) for name in sorted(set(weight_map.values()))}
    stored = {name: state_dict_tensors(file.state, file.path) for name, file in files.items()}
    found = check_shards(index, weight_map, stored, strict)
    doubts = tuple(words for words in (found.unlisted, found.moved, found.lost) if words)
    # In the order of the index, then what it does not name.
    order = dict.fromkeys((*weight_map, *chain.from_iterable(stored.values())))
    there = {name: tensor for each in stored.values() for name, tensor in each.items()}
    whole = {name: there[name] for name in order if name in there}
    words = f"{chosen}, {len(files)} shard{'s' if len(files) > 1 else ''}"
    lost = tuple(name for name in order if name not in there)
    return Weights(whole, tuple(files.values()), index, words, tuple(others), doubts, lost)


def _names_only(index: Path, name: str) -> bool:
    """Whether an index names one file alone: it says no more than that file."""
    try:
        return set(read_index(index, Faults()).values()) == {name}
    except DamagedError:
        return False


def read_index(path: Path, faults: Faults) -> dict[str, str]:
    """The file of each tensor, by an index.

    Raises:
        DamagedError: ``path`` is no index; or ``faults`` is strict, and a file that it names is missing.
    """
    if not path.is_file():
        raise DamagedError("the index of shards is not a file", where=path, remedy=_AGAIN)
    entries = read_entries(path, "index of shards", _MAX_INDEX_NBYTES).get("weight_map")
    if not isinstance(entries, dict):
        raise DamagedError("no index of shards: it has no weight_map with tensors and files", where=path, remedy=_AGAIN)
    for name in entries.values():
        if not isinstance(name, str) or not is_child_name(name):
            words = f"the shard {str(name)[:80]!r} is not the name of a file beside it"
            raise DamagedError(words, where=path, remedy=_AGAIN)
    for name in sorted(set(entries.values())):
        if not (path.parent / name).is_file():
            faults.note(DamagedError(f"the shard {name} is missing", where=path, remedy=_AGAIN))
    return entries


def check_shards(
    index: Path, weight_map: Mapping[str, str], stored: Mapping[str, Collection[str]], faults: Faults
) -> Disagreements:
    """Check that each tensor is in one file, and return what the index says otherwise.

    transformers takes the names of the files from the index, and reads each file whole [``modeling_utils.py:
    _load_pretrained_model``]: a tensor that the index does not name, or places in another of its files, is read; one
    that no file has is missing only if the model needs it.

    Args:
        index: its path, for messages.
        weight_map: the file of each tensor, by the index.
        stored: the tensors in each file that could be opened.
        faults: raises or collects the faults.

    Raises:
        DamagedError: ``faults`` is strict, and a tensor is in two files.
    """
    homes: dict[str, list[str]] = {}
    for file in sorted(stored):
        for name in stored[file]:
            homes.setdefault(name, []).append(file)
    for name, files in homes.items():
        if len(files) > 1:
            words = f"{name[:200]} is in {listed(files, len(files))}: which of them counts is not certain"
            faults.note(DamagedError(words, where=index, remedy=_AGAIN))
            break
    unlisted = [name for name in homes if name not in weight_map]
    moved = [name for name, file in weight_map.items() if file in stored and file not in homes.get(name, [file])]
    lost = [name for name, file in weight_map.items() if file in stored and name not in homes]
    return Disagreements(
        _words(index, "are not in the index, and are read, as by transformers", unlisted),
        _words(index, "are in another file than the index says, and are read there", moved),
        _words(index, "are in the index, and in no file", lost),
    )


def _words(index: Path, what: str, names: Sequence[str]) -> str:
    return f"{index.name}: {len(names)} tensors {what}: {listed(names, len(names))}" if names else ""
