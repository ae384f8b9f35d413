"""Open what ``torch.distributed.checkpoint`` writes: one ``.distcp`` file, or the whole folder by its ``.metadata``.

Layout, from ``torch/distributed/checkpoint/filesystem.py`` (``_write_item``, ``FileSystemReader.read_data``) of
PyTorch: a ``.distcp`` contains its items one after the other. A chunk of a tensor is a complete torch zip of that
chunk. An object is stored as the bytes that the planner made of it, by default a complete torch zip too. Only
``.metadata`` records the names of the items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise
from operator import add
from pathlib import Path
from typing import Any

from streamconv.containers.dcp.metadata_reader import NAME, Item, Metadata, TensorEntry, read_metadata
from streamconv.containers.dcp.scan import scan
from streamconv.containers.pickles.machine import Global
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.zip_reader import open_part
from streamconv.core.errors import DamagedError, SourceError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.views import Piece, Storage
from streamconv.io.reading import InputFile, reading, status_of

__all__ = ["DistributedCheckpoint", "item_label", "open_distcp", "open_distributed"]

_SHOWN = 80


@dataclass(frozen=True, slots=True)
class DistributedCheckpoint:
    """A folder of ``torch.distributed.checkpoint``, its tensors put together from their chunks.

    Attributes:
        folder: its path.
        tensors: each whole tensor by its name.
        objects: the place of each object's bytes; ``value`` reads an object.
        metadata: the other entries of ``.metadata``, such as ``planner_data``, as inert values.
        files: the items of each file, in order: a tensor, a part of one (``w[0:2, 0:8]``), or an object.
        globals: each class or function that ``.metadata`` or a tensor's pickle names, and how often it is called.
        notes: remarks for the user.
    """

    folder: Path
    tensors: dict[str, LazyTensor]
    objects: dict[str, Storage]
    metadata: dict[str, Any]
    files: dict[str, tuple[str, ...]]
    globals: Mapping[Global, int]
    notes: tuple[str, ...]

    def value(self, name: str) -> Any:
        """An object as an inert value if its bytes are a torch zip; otherwise the place of its bytes.

        Raises:
            KeyError: there is no such object.
            DamagedError: its bytes are damaged.
            UnsafeError: its pickle is too large or does what no checkpoint needs.
            UnsupportedError: it is a zip of something else.
            StorageError: the system refused to read.
        """
        place = self.objects[name]
        with reading(place.path) as file:
            part = _open_object(place, file)
        return place if part is None else part.state


def open_distcp(path: Path, metadata: Metadata | None = None) -> StoredFile:
    """Read the items of one ``.distcp``; no tensor byte is read.

    Its state is a flat dictionary of items: a tensor under its name, a part of one as ``w[0:2, 0:8]``, an object as
    its inert value, or as a :class:`Storage` if it is no torch zip. The names are those of the ``.metadata`` in the
    same folder; without it the file is read by scanning, and they are ``item_0``, ``item_1`` and so on.

    Args:
        path: the file.
        metadata: the content of ``.metadata``, if the caller has read it already.

    Raises:
        SourceError: there is no such file.
        DamagedError: the file or ``.metadata`` is cut off or inconsistent.
        UnsafeError: a pickle is too large or does what no checkpoint needs.
        UnsupportedError: an item is of a kind that is not read here, or the file is empty.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        if not file.nbytes:
            raise UnsupportedError("an empty file", where=path)
        beside = path.with_name(NAME)
        if metadata is None and beside.is_file():
            status = status_of(beside)
            metadata = _metadata_beside(beside, status.st_mtime_ns, status.st_size)
        items = [] if metadata is None else [item for item in metadata.items.values() if item.file == path.name]
        if metadata is not None and items:
            named = dict(_named(metadata, items, file))
            notes: tuple[str, ...] = ()
        else:
            places = scan(file)
            named = {
                f"item_{n}": open_part(file, start, nbytes, f"item_{n}/") for n, (start, nbytes) in enumerate(places)
            }
            missing = "the .metadata beside it does not know it" if metadata else "there is no .metadata beside it"
            notes = (f"read by scanning: {missing}; the names of its items are not known",)
    return _joined(path, named, notes)


@lru_cache(maxsize=1)
def _metadata_beside(path: Path, _time: int, _size: int) -> Metadata:
    """The ``.metadata`` at ``path``, kept for the next file of the folder unless its time or size changes."""
    return read_metadata(path)


def open_distributed(folder: Path) -> DistributedCheckpoint:
    """Read the metadata of a whole checkpoint: ``.metadata`` and the zip directory of each item; no tensor byte.

    Raises:
        SourceError: there is no ``.metadata``, or a file that it names is not there.
        DamagedError: something is cut off or inconsistent, or the chunks of a tensor do not tile it.
        UnsafeError: a pickle is too large or does what no checkpoint needs, or names a file elsewhere.
        UnsupportedError: an item is of a kind that is not read here.
        StorageError: the system refused to read.
    """
    metadata = read_metadata(folder / NAME)
    by_file: dict[str, list[Item]] = {}
    for item in metadata.items.values():
        by_file.setdefault(item.file, []).append(item)
    missing = sorted(name for name in by_file if not (folder / name).is_file())
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(by_file)} files that {NAME} names are not there: {', '.join(missing[:4])}"
            + (" .." if missing[4:] else ""),
            where=folder,
        )
    pieces: dict[str, list[Piece]] = {name: [] for name in metadata.tensors}
    objects: dict[str, Storage] = {}
    files: dict[str, tuple[str, ...]] = {}
    calls: Counter[Global] = Counter(metadata.globals)
    for name, items in sorted(by_file.items()):
        with reading(folder / name) as file:
            ordered = _ordered(items, file)
            files[name] = tuple(item_label(metadata, item) for item in ordered)
            for item in ordered:
                if item.start is None:
                    objects[item.name] = _place(item, file)
                else:
                    part = _open_chunk(metadata, item, file)
                    pieces[item.name] += _moved(part.state, item.start)
                    calls.update(part.globals)
    tensors = {name: _assembled(entry, pieces[name]) for name, entry in metadata.tensors.items()}
    return DistributedCheckpoint(folder, tensors, objects, metadata.rest, files, dict(calls), metadata.notes)


def item_label(metadata: Metadata, item: Item) -> str:
    """The name of an item, followed by the box of its chunk unless that is the whole tensor."""
    if item.start is None:
        return item.name
    chunk = metadata.chunk(item)
    if chunk.shape == metadata.tensors[item.name].shape:
        return item.name
    return f"{item.name}[{', '.join(f'{a}:{a + n}' for a, n in zip(chunk.start, chunk.shape, strict=True))}]"


def _ordered(items: Iterable[Item], file: InputFile) -> list[Item]:
    """The items of a file by offset, checked to lie inside it and not to overlap."""
    ordered = sorted(items, key=lambda item: (item.offset, item.nbytes))
    for item in ordered:
        if item.offset + item.nbytes > file.nbytes:
            raise DamagedError(
                f"{item.name[:_SHOWN]}: bytes {item.offset} to {item.offset + item.nbytes} are not in a file of "
                f"{file.nbytes}",
                where=file.path,
            )
    for left, right in pairwise(ordered):
        if left.offset + left.nbytes > right.offset:
            raise DamagedError(f"{left.name[:_SHOWN]} and {right.name[:_SHOWN]} share bytes", where=file.path)
    return ordered


def _named(metadata: Metadata, items: Iterable[Item], file: InputFile) -> Iterator[tuple[str, StoredFile | Storage]]:
    seen = set()
    for item in _ordered(items, file):
        label = item_label(metadata, item)
        if label in seen:
            raise DamagedError(f"two items are named {label[:_SHOWN]}", where=file.path)
        seen.add(label)
        if item.start is not None:
            yield label, _open_chunk(metadata, item, file)
        else:
            place = _place(item, file)
            yield label, _open_object(place, file) or place


def _place(item: Item, file: InputFile) -> Storage:
    return Storage(file.path, item.offset, item.nbytes, item.name, None, file.identity)


def _open_object(place: Storage, file: InputFile) -> StoredFile | None:
    """The object at ``place`` if its bytes are a torch zip; otherwise None."""
    if file.read(place.offset, min(4, place.nbytes)) != b"PK\x03\x04":
        return None
    return open_part(file, place.offset, place.nbytes, f"{place.name}/")


def _open_chunk(metadata: Metadata, item: Item, file: InputFile) -> StoredFile:
    """Open an item, and check that it is a tensor of the shape and the dtype that ``.metadata`` records."""
    entry, chunk = metadata.tensors.get(item.name), metadata.chunk(item)
    part = open_part(file, item.offset, item.nbytes, f"{item_label(metadata, item)}/")
    tensor = part.state
    if entry is None or not isinstance(tensor, LazyTensor):
        raise DamagedError(f"{item.name[:_SHOWN]}: byte {item.offset} begins no tensor", where=file.path)
    if tensor.shape != chunk.shape or tensor.dtype != entry.dtype:
        raise DamagedError(
            f"{item.name[:_SHOWN]} at {item.start} is {tensor.dtype} {tensor.shape}, {NAME} says {entry.dtype} "
            f"{chunk.shape}",
            where=file.path,
        )
    if tensor.nbytes > item.nbytes:
        # Only an expanded tensor is larger than its item, and the planner clones such a tensor before it is written.
        raise DamagedError(
            f"{item.name[:_SHOWN]} at {item.start} is {tensor.shape}, {tensor.nbytes} bytes: they are not in "
            f"{item.nbytes}",
            where=file.path,
        )
    return part


def _moved(tensor: LazyTensor, start: tuple[int, ...]) -> Iterator[Piece]:
    return (Piece(tuple(map(add, piece.start, start)), piece.shape, piece.views, piece.fill) for piece in tensor.pieces)


def _assembled(entry: TensorEntry, pieces: list[Piece]) -> LazyTensor:
    return LazyTensor(entry.shape, entry.dtype, tuple(pieces)).coalesced()


def _joined(path: Path, items: Mapping[str, StoredFile | Storage], notes: tuple[str, ...]) -> StoredFile:
    """The items of a file as one :class:`StoredFile`."""
    state: dict[str, Any] = {}
    storages: dict[str, Storage] = {}
    calls: Counter[Global] = Counter()
    for name, item in items.items():
        state[name] = item if isinstance(item, Storage) else item.state
        if isinstance(item, StoredFile):
            storages |= {f"{name}/{key}": storage for key, storage in item.storages.items()}
            calls.update(item.globals)
    opaque = [name for name, item in items.items() if isinstance(item, Storage)]
    if opaque:
        notes = (*notes, f"{len(opaque)} objects are no torch zips and are left as bytes: {opaque[0][:_SHOWN]}")
    with_data = [
        item
        for item in items.values()
        if isinstance(item, StoredFile) and any(storage.nbytes for storage in item.storages.values())
    ]
    parts = (item for item in items.values() if isinstance(item, StoredFile))
    notes = (*notes, *dict.fromkeys(note for part in parts for note in part.notes))
    disabled = bool(with_data) and all(item.crc_disabled for item in with_data)
    locate = partial(_records, tuple(items.values()))
    return StoredFile(path, "distcp", state, storages, disabled, dict(calls), notes, locate)


def _records(items: tuple[StoredFile | Storage, ...]) -> tuple[Storage, ...]:
    return tuple(chain.from_iterable((i,) if isinstance(i, Storage) else i.records() for i in items))
