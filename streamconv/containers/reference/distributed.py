"""Read the chunks of a ``.distcp`` file with torch's own reader.

Its ``read_metadata`` unpickles ``.metadata``, and so runs what that names. It is not called: the reader gets a
``Metadata`` that is built from our own parse. The rest is torch's: where an item lies in its file, and how it is loaded
(tensors alone; objects would be unpickled too). From ``torch/distributed/checkpoint/filesystem.py``:
``FileSystemReader``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamconv.containers.dcp.metadata_reader import NAME, Metadata, TensorEntry, read_metadata
from streamconv.containers.dcp.reader import item_label
from streamconv.containers.reference.torch_tensors import REFUSALS, ReferenceFile, refused
from streamconv.core.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint import metadata as torch_metadata

__all__ = ["open_chunks"]

_READER = "torch.distributed.checkpoint"


class _OneChunk:
    """The part of a planner that torch's reader calls: it has it fill one tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def resolve_tensor(self, _: object) -> torch.Tensor:
        """Where the item goes."""
        return self.tensor

    def commit_tensor(self, _: object, __: torch.Tensor) -> None:
        """Nothing is to be done."""


def open_chunks(path: Path) -> ReferenceFile:
    """The chunks of a ``.distcp``, by the names that :func:`streamconv.containers.dcp.reader.open_distcp` gives them.

    Raises:
        UnsupportedError: there is no ``.metadata`` beside it, which torch's reader needs, or there is no such reader.
        DamagedError, UnsafeError: the ``.metadata`` is not valid.
    """
    beside = path.with_name(NAME)
    if not beside.is_file():
        raise UnsupportedError(f"{_READER} refuses it: there is no {NAME} beside it", where=path)
    status = beside.stat()
    try:
        metadata, reader = _folder(path.parent, status.st_mtime_ns, status.st_size)
    except REFUSALS as error:  # a torch that was built without it
        raise refused(_READER, path, error) from error
    chunks = {
        item_label(metadata, item): (item.name, item.start)
        for item in metadata.items.values()
        if item.file == path.name and item.start is not None
    }
    return ReferenceFile(
        path, _READER, tuple(chunks), lambda label: _load(metadata, reader, *chunks[label]), is_mapped=False
    )


def _load(metadata: Metadata, reader: Any, name: str, start: tuple[int, ...]) -> torch.Tensor:
    """One chunk, as torch's reader loads it."""
    import torch
    from torch.distributed.checkpoint import LoadPlan
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

    entry = metadata.tensors[name]
    shape = torch.Size(entry.chunks[start].shape)
    tensor = torch.empty(shape, dtype=getattr(torch, entry.dtype.name))
    index, nothing = MetadataIndex(name, torch.Size(start)), torch.Size((0,) * len(shape))
    item = ReadItem(LoadItemType.TENSOR, index, nothing, index, nothing, shape)
    reader.read_data(LoadPlan([item]), _OneChunk(tensor)).wait()
    return tensor


@lru_cache(maxsize=1)
def _folder(folder: Path, _time: int, _size: int) -> tuple[Metadata, Any]:
    """A folder's metadata and torch's reader of it, kept for the next file unless the ``.metadata`` changes."""
    from torch.distributed.checkpoint import FileSystemReader

    metadata = read_metadata(folder / NAME)
    reader = FileSystemReader(folder)
    reader.set_up_storage_reader(_as_torch(metadata), is_coordinator=True)
    return metadata, reader


def _as_torch(metadata: Metadata) -> torch_metadata.Metadata:
    """What torch would have unpickled, without the objects."""
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import Metadata as TorchMetadata
    from torch.distributed.checkpoint.metadata import MetadataIndex

    places = {
        MetadataIndex(item.name, torch.Size(item.start)): _StorageInfo(item.file, item.offset, item.nbytes)
        for item in metadata.items.values()
        if item.start is not None
    }
    return TorchMetadata({name: _described(entry) for name, entry in metadata.tensors.items()}, storage_data=places)


def _described(entry: TensorEntry) -> torch_metadata.TensorStorageMetadata:
    import torch
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

    chunks = [ChunkStorageMetadata(torch.Size(c.start), torch.Size(c.shape)) for c in entry.chunks.values()]
    properties = TensorProperties(dtype=getattr(torch, entry.dtype.name))
    return TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)
