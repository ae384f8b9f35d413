"""Write the ``.metadata`` of ``torch.distributed.checkpoint``, without torch and without building its objects.

``filesystem.py:FileSystemWriter.finish`` pickles one ``Metadata`` (``torch/distributed/checkpoint/metadata.py``), and
``FileSystemReader.read_metadata`` unpickles it. Its classes are dataclasses without ``__setstate__`` (except
``TensorProperties``), so the state of an object is the dictionary of its attributes. A release of torch that does not
know an attribute (``version``, ``StorageMeta.modules``) sets it without harm. The pickle has protocol 2. It is written
directly from the items, without objects in between: a large model has tens of thousands of chunks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

from streamconv.containers.pickles.writer import int_bytes, text_bytes
from streamconv.core.dtypes import DType

__all__ = ["StoredItem", "WholeTensor", "metadata_bytes"]

# filesystem.py:CURRENT_DCP_VERSION, of the torch releases that record one.
_VERSION = "1.0.0"
_NONE, _FALSE, _EMPTY_DICT, _EMPTY_LIST, _NEW = b"N", b"\x89", b"}", b"]", b")\x81"
_SET_ITEM, _APPEND, _BUILD, _CALL_WITH_ONE = b"s", b"a", b"b", b"\x85R"


def _class(name: str, module: str = "torch.distributed.checkpoint.metadata") -> bytes:
    return f"c{module}\n{name}\n".encode()


_METADATA = _class("Metadata")
_STORAGE_META = _class("StorageMeta")
_TENSOR = _class("TensorStorageMetadata")
_PROPERTIES = _class("TensorProperties")
_MEMORY_FORMAT = _class("_MEM_FORMAT_ENCODING")
_CHUNK = _class("ChunkStorageMetadata")
_OBJECT = _class("BytesStorageMetadata")
_INDEX = _class("MetadataIndex")
_INFO = _class("_StorageInfo", "torch.distributed.checkpoint.filesystem")
_SIZE = _class("Size", "torch")
_LAYOUT = _class("_get_layout", "torch.serialization")


@dataclass(frozen=True, slots=True)
class WholeTensor:
    """The shape and the dtype of a whole tensor, whatever its chunks."""

    shape: tuple[int, ...]
    dtype: DType


class StoredItem(NamedTuple):
    """An item of a ``.distcp``: a chunk of ``shape`` that begins at ``start`` of its tensor, or (both None) an object.

    ``file`` is the name of the file in the folder of the ``.metadata``. ``offset`` and ``nbytes`` locate the item in
    it, as planned by :class:`streamconv.containers.dcp.writer.DistcpLayout`.
    """

    file: str
    name: str
    start: tuple[int, ...] | None
    shape: tuple[int, ...] | None
    offset: int
    nbytes: int


def metadata_bytes(tensors: Mapping[str, WholeTensor], items: Iterable[StoredItem]) -> bytes:
    """The ``.metadata`` of a folder with these items; an item whose name is not in ``tensors`` is an object.

    The other entries are those that Megatron-Core 0.16 writes. ``planner_data`` is None: its ``MCoreSavePlanner``
    flattens no state dict (``megatron/core/dist_checkpointing/strategies/torch.py``). ``mcore_data``, the shapes of
    flattened optimizer states, is empty: releases up to 0.14 look for it, newer ones do without. ``storage_meta``
    records neither the place nor the time of writing, so that equal checkpoints have equal bytes.

    Raises:
        ValueError: an item is there twice, or the chunks of a tensor do not add up to it.
    """
    listed = list(items)
    chunks: dict[str, list[StoredItem]] = {name: [] for name in tensors}
    objects: list[str] = []
    for item in listed:
        if item.name in chunks:
            chunks[item.name].append(item)
        else:
            objects.append(item.name)
            if item.start is not None:
                raise ValueError(f"{item.name}: a chunk of a tensor that is not described")
    if len({(item.name, item.start) for item in listed}) != len(listed):
        raise ValueError("an item is there twice")
    for name, tensor in tensors.items():
        _check_chunks(name, tensor.shape, chunks[name])
    writer = _Writer()
    writer.metadata(tensors, chunks, objects, listed)
    return bytes(writer.out)


def _check_chunks(name: str, shape: tuple[int, ...], chunks: Sequence[StoredItem]) -> None:
    """Check the chunks of a tensor as ``default_planner.py:_validate_global_plan`` does, except for overlaps."""
    numel = 0
    for item in chunks:
        start, size = item.start, item.shape
        if start is None or size is None or len(start) != len(shape) or len(size) != len(shape):
            raise ValueError(f"{name} {shape}: {size} at {start} is no chunk of it")
        if any(a + n > m for a, n, m in zip(start, size, shape, strict=True)):
            raise ValueError(f"{name} {shape}: a chunk of {size} at {start} leaves it")
        numel += prod(size)
    if not chunks or numel != prod(shape):
        raise ValueError(f"{name} {shape}: {len(chunks)} chunks hold {numel} elements of {prod(shape)}")


@lru_cache(maxsize=256)
def _ints(sizes: tuple[int, ...]) -> bytes:
    """The instructions that make a tuple of integers."""
    return b"(" + b"".join(map(int_bytes, sizes)) + b"t"


class _Writer:
    """Collects the instructions; only values that occur many times (classes, names) go into the memo."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[str | bytes, bytes] = {}

    def shared(self, instruction: bytes) -> None:
        """Add an instruction whose value never changes: in full the first time, recalled from the memo after that."""
        recall = self.memo.get(instruction)
        if recall is None:
            self.remember(instruction, instruction)
        else:
            self.out += recall

    def text(self, value: str) -> None:
        recall = self.memo.get(value)
        if recall is None:
            self.remember(value, text_bytes(value))
        else:
            self.out += recall

    def remember(self, key: str | bytes, instruction: bytes) -> None:
        index = len(self.memo)
        short = index < 256
        number = bytes((index,)) if short else struct.pack("<I", index)
        self.memo[key] = (b"h" if short else b"j") + number
        self.out += instruction + (b"q" if short else b"r") + number

    def new(self, cls: bytes) -> None:
        """Begin an object: its class, and the dictionary for its attributes."""
        self.shared(cls)
        self.out += _NEW + _EMPTY_DICT

    def attribute(self, name: str, instructions: bytes) -> None:
        self.text(name)
        self.out += instructions + _SET_ITEM

    def size(self, name: str, sizes: tuple[int, ...]) -> None:
        """Add an attribute that is a ``torch.Size``; its ``__reduce__`` calls the class with a tuple."""
        self.text(name)
        self.shared(_SIZE)
        self.out += _ints(sizes)
        self.out += _CALL_WITH_ONE + _SET_ITEM

    def mapping(self, name: str, fill: Callable[[], None]) -> None:
        """Add an attribute that is a dictionary, whose items ``fill`` adds."""
        self.text(name)
        self.out += _EMPTY_DICT
        fill()
        self.out += _SET_ITEM

    def metadata(
        self,
        tensors: Mapping[str, WholeTensor],
        chunks: Mapping[str, Sequence[StoredItem]],
        objects: Sequence[str],
        items: Sequence[StoredItem],
    ) -> None:
        """Add the whole pickle."""

        def described() -> None:
            for name, whole in tensors.items():
                self.tensor(name, whole, chunks[name])
            for name in objects:
                self.text(name)
                self.new(_OBJECT)
                self.out += _BUILD + _SET_ITEM

        def placed() -> None:
            for item in items:
                self.place(item)

        self.new(_METADATA)
        self.mapping("state_dict_metadata", described)
        self.attribute("planner_data", _NONE)
        self.mapping("storage_data", placed)
        self.storage_meta()
        self.attribute("version", text_bytes(_VERSION))
        self.attribute("mcore_data", _EMPTY_DICT)
        self.out += _BUILD + b"."

    def storage_meta(self) -> None:
        self.text("storage_meta")
        self.new(_STORAGE_META)
        for name in ("checkpoint_id", "save_id", "load_id"):
            self.attribute(name, _NONE)
        self.attribute("modules", _EMPTY_LIST)
        self.out += _BUILD + _SET_ITEM

    def tensor(self, name: str, whole: WholeTensor, chunks: Sequence[StoredItem]) -> None:
        self.text(name)
        self.new(_TENSOR)
        self.properties(whole.dtype)
        self.size("size", whole.shape)
        self.text("chunks")
        self.out += _EMPTY_LIST
        for item in chunks:
            self.new(_CHUNK)
            self.size("offsets", item.start or ())
            self.size("sizes", item.shape or ())
            self.out += _BUILD + _APPEND
        self.out += _SET_ITEM + _BUILD + _SET_ITEM

    def properties(self, dtype: DType) -> None:
        """``TensorProperties.__getstate__``: dtype, layout, requires_grad, the memory format as an enum, pin_memory."""
        self.text("properties")
        self.shared(_PROPERTIES)
        self.out += _NEW + b"("
        self.shared(_class(dtype.name, "torch"))
        self.shared(_LAYOUT)  # as torch/serialization.py registers it with copyreg
        self.text("torch.strided")
        self.out += _CALL_WITH_ONE + _FALSE
        self.shared(_MEMORY_FORMAT)
        self.out += int_bytes(0) + _CALL_WITH_ONE + _FALSE + b"t" + _BUILD + _SET_ITEM

    def place(self, item: StoredItem) -> None:
        """``MetadataIndex`` (its ``index`` is a hint that equality ignores) and ``_StorageInfo`` of an item.

        ``_StorageInfo.__getstate__`` leaves out ``transform_descriptors`` where there are none, as older releases did.
        """
        self.new(_INDEX)
        self.text("fqn")
        self.text(item.name)
        self.out += _SET_ITEM
        self.attribute("index", _NONE)
        if item.start is not None:
            self.size("offset", item.start)
        self.out += _BUILD
        self.new(_INFO)
        self.text("relative_path")
        self.text(item.file)
        self.out += _SET_ITEM
        self.attribute("offset", int_bytes(item.offset))
        self.attribute("length", int_bytes(item.nbytes))
        self.out += _BUILD + _SET_ITEM
