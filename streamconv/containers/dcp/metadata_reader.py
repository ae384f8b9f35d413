"""Read and check the ``.metadata`` of ``torch.distributed.checkpoint``: where each part of each tensor is stored.

Layout, from ``torch/distributed/checkpoint/metadata.py`` (``Metadata``, ``TensorStorageMetadata``,
``ChunkStorageMetadata``, ``BytesStorageMetadata``, ``MetadataIndex``) and ``filesystem.py`` (``_StorageInfo``) of
PyTorch: a pickle of one ``Metadata`` whose ``state_dict_metadata`` describes each tensor and names each object, and
whose ``storage_data`` records the file, the offset and the length of each chunk and object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Global, Record
from streamconv.containers.pickles.measure import check_effort
from streamconv.containers.pickles.reader import MAX_PICKLE_NBYTES, behind, load_from
from streamconv.containers.torch_save.tensors import TorchBuilders
from streamconv.core.dtypes import DType, dtype_named
from streamconv.core.effort import LARGEST_SIZE, MOST_AXES, Effort
from streamconv.core.errors import DamagedError, UnsafeError, UnsupportedError
from streamconv.core.text import shown
from streamconv.core.tiling import Box, tiling_fault
from streamconv.io.reading import reading

__all__ = ["NAME", "Chunk", "Item", "Metadata", "TensorEntry", "read_metadata"]

NAME = ".metadata"
_MODULE = "torch.distributed.checkpoint"
_MOST_FIELDS = 64
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Item:
    """A range of bytes in a file: the chunk of tensor ``name`` that begins at ``start``, or an object (None)."""

    name: str
    start: tuple[int, ...] | None
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def edges(self) -> Box:
        """The box as (start, stop) on each axis."""
        return tuple((start, start + size) for start, size in zip(self.start, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A whole tensor, and by their start the chunks that it is stored in; they tile it."""

    shape: tuple[int, ...]
    dtype: DType
    chunks: dict[tuple[int, ...], Chunk]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The content of ``.metadata``; ``rest`` contains the entries besides tensors, objects and their places."""

    path: Path
    tensors: dict[str, TensorEntry]
    objects: tuple[str, ...]
    items: dict[tuple[str, tuple[int, ...] | None], Item]
    rest: dict[str, Any]
    globals: dict[Global, int]
    notes: tuple[str, ...] = ()

    def chunk(self, item: Item) -> Chunk:
        """The chunk of a tensor that an item stores.

        Raises:
            DamagedError: the tensor has no chunk there.
        """
        entry = self.tensors.get(item.name)
        chunk = entry.chunks.get(item.start) if entry and item.start is not None else None
        if chunk is None:
            raise DamagedError(f"{item.name[:_SHOWN]} has no chunk at {item.start}", where=self.path)
        return chunk


def read_metadata(path: Path) -> Metadata:
    """Read a ``.metadata`` file; none of the classes that it names is imported.

    Raises:
        SourceError: there is no such file.
        DamagedError: it is cut off or inconsistent, or the chunks of a tensor do not tile it.
        UnsafeError: the pickle is too large or does what no checkpoint needs, or an item's file is in another folder.
        UnsupportedError: a tensor is of an unknown dtype, or items are compressed.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        if file.nbytes > MAX_PICKLE_NBYTES:
            raise UnsafeError(f"{file.nbytes} bytes; the limit is {MAX_PICKLE_NBYTES}", where=path)
        data = file.read(0, file.nbytes)
    named: dict[Global, int] = {}
    # What describes tensors is not walked, but taken apart here: measuring it would take as long as reading it.
    builders = TorchBuilders(path, str(path)).table()
    root, end = load_from(data, 0, str(path), builders, named=named, measured=False)
    return replace(_Parser(path, file.nbytes).parse(root, named), notes=behind(len(data) - end))


def _named(name: Any) -> str:
    return name[:_SHOWN] if isinstance(name, str) else shown(name, _SHOWN)


class _Parser:
    def __init__(self, path: Path, nbytes: int) -> None:
        # Each chunk takes bytes of its own, but a pickle may name a list of them again and again.
        self.path, self.nbytes, self.chunks = path, nbytes, 0

    def damaged(self, what: str) -> DamagedError:
        return DamagedError(what, where=self.path)

    def parse(self, root: Any, named: dict[Global, int]) -> Metadata:
        fields = self.fields(root, "metadata.Metadata")
        described, places = fields.pop("state_dict_metadata", None), fields.pop("storage_data", None)
        if not isinstance(described, dict) or not isinstance(places, dict):
            raise self.damaged("it has no state_dict_metadata or no storage_data")
        tensors: dict[str, TensorEntry] = {}
        objects: list[str] = []
        for name, entry in described.items():
            if not isinstance(name, str) or not isinstance(entry, Record):
                raise self.damaged(f"the entry {_named(name)} describes nothing")
            if entry.cls.name == "BytesStorageMetadata":
                objects.append(name)
            else:
                tensors[name] = self.tensor(name, self.fields(entry, "metadata.TensorStorageMetadata"))
        items = dict(self.items(places))
        wanted = {(name, start) for name, entry in tensors.items() for start in entry.chunks}
        missing = (wanted | {(name, None) for name in objects}) - items.keys()
        for name, start in sorted(missing, key=str)[:1]:
            raise self.damaged(f"{name[:_SHOWN]}{'' if start is None else f' at {start}'} is stored nowhere")
        check_effort(fields, Effort(str(self.path), self.nbytes))
        return Metadata(self.path, tensors, tuple(objects), items, fields, named)

    def fields(self, value: Any, cls: str) -> dict[str, Any]:
        """The attributes of an object of a class of ``torch.distributed.checkpoint``."""
        if not isinstance(value, Record) or str(value.cls) != f"{_MODULE}.{cls}":
            actual = value.cls if isinstance(value, Record) else type(value).__name__
            raise self.damaged(f"a {cls} was due, found a {str(actual)[:_SHOWN]}")
        if isinstance(value.state, dict) and len(value.state) > _MOST_FIELDS:
            raise self.damaged(f"a {cls} of {len(value.state)} fields")
        return dict(value.attributes)

    def sizes(self, value: Any, name: str) -> tuple[int, ...]:
        good = isinstance(value, tuple) and len(value) <= MOST_AXES
        if not good or not all(type(number) is int and 0 <= number <= LARGEST_SIZE for number in value):
            raise self.damaged(f"{name[:_SHOWN]} has an offset or a size that is none")
        sizes: tuple[int, ...] = value
        return sizes

    def tensor(self, name: str, fields: dict[str, Any]) -> TensorEntry:
        shape, chunks = self.sizes(fields.get("size"), name), fields.get("chunks")
        if not isinstance(chunks, list):
            raise self.damaged(f"{name[:_SHOWN]} has no list of chunks")
        self.chunks += len(chunks)
        if self.chunks > self.nbytes:
            raise UnsafeError(f"more than {self.nbytes} chunks in {self.nbytes} bytes", where=self.path)
        boxes = [self.box(name, self.fields(chunk, "metadata.ChunkStorageMetadata")) for chunk in chunks]
        fault = tiling_fault([box.edges for box in boxes], shape, bounded=True)
        if fault:
            raise self.damaged(f"the chunks of {name[:_SHOWN]} {shape} do not tile it: {fault}")
        by_start = {box.start: box for box in boxes}
        if len(by_start) != len(boxes):
            raise self.damaged(f"two chunks of {name[:_SHOWN]} begin at the same place")
        return TensorEntry(shape, self.dtype(name, fields.get("properties")), by_start)

    def box(self, name: str, fields: dict[str, Any]) -> Chunk:
        start, shape = self.sizes(fields.get("offsets"), name), self.sizes(fields.get("sizes"), name)
        if len(start) != len(shape):
            raise self.damaged(f"a chunk of {name[:_SHOWN]} has {len(start)} offsets and {len(shape)} sizes")
        return Chunk(start, shape)

    def dtype(self, name: str, properties: Any) -> DType:
        """The dtype: the first item of the tuple that ``TensorProperties.__getstate__`` returns."""
        state = properties.state if isinstance(properties, Record) else None
        first = state[0] if isinstance(state, tuple) and state else None
        if isinstance(state, dict):
            first = state.get("dtype")
        if not isinstance(first, Global):
            raise self.damaged(f"{name[:_SHOWN]} has no dtype")
        dtype = dtype_named(first.name) if first.module == "torch" else None
        if dtype is None:
            raise UnsupportedError(f"{name[:_SHOWN]} is of the type {str(first)[:_SHOWN]}", where=self.path)
        return dtype

    def items(self, places: dict[Any, Any]) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], Item]]:
        seen = set()
        for key, value in places.items():
            index = self.fields(key, "metadata.MetadataIndex")
            info = self.fields(value, "filesystem._StorageInfo")
            name, start = index.get("fqn"), index.get("offset")
            if not isinstance(name, str):
                raise self.damaged("an item without a name")
            if start is not None:
                start = self.sizes(start, name)
            if (name, start) in seen:
                raise self.damaged(f"{name[:_SHOWN]} is stored twice")
            seen.add((name, start))
            yield (name, start), self.item(name, start, info)

    def item(self, name: str, start: tuple[int, ...] | None, info: dict[str, Any]) -> Item:
        if info.get("transform_descriptors"):
            # filesystem.py:_StorageWriterTransforms, such as compression with zstandard.
            words = shown(info["transform_descriptors"], _SHOWN)
            raise UnsupportedError(
                f"{name[:_SHOWN]} was transformed when it was written: {words}",
                where=self.path,
                remedy="save it again without extensions",
            )
        file = info.get("relative_path")
        plain = isinstance(file, str) and file not in ("", ".", "..") and not set(file) & {"/", "\\", "\0"}
        if not plain or not isinstance(file, str):
            raise UnsafeError(
                f"{name[:_SHOWN]} is said to be in {shown(file, _SHOWN)}, which is no file of this folder",
                where=self.path,
            )
        offset, nbytes = self.sizes((info.get("offset"), info.get("length")), name)
        return Item(name, start, file, offset, nbytes)
