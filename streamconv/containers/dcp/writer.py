"""Plan the ``.distcp`` file that ``torch.distributed.checkpoint`` would write, every byte's place known beforehand.

The format is that of ``torch/distributed/checkpoint/filesystem.py``. ``_write_item`` notes where the stream stands,
writes one item and notes how far it came: items stand one behind the other, with nothing between them and nothing
around them. A tensor is what ``torch.save(tensor, stream)`` writes, a whole zip: its offsets and its alignment to 64
bytes count from its own beginning (``torch/serialization.py:_open_zipfile_writer_buffer``; its ``PyTorchFileWriter``
counts what it wrote), and its folder is called ``archive``, which ``caffe2/serialize/inline_container.cc`` says where
there is no file name. An object is the bytes that the planner made of it; torch's and Megatron's planners make what
``torch.save`` writes into a buffer. ``_write_files_from_queue`` writes the objects first. Compared byte by byte with
torch's own files in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.containers.pickles.writer import StoredTensor
from streamconv.containers.torch_save.zip_writer import TorchLayout, plan_torch_file
from streamconv.core.dtypes import DType
from streamconv.core.errors import UnsupportedError

__all__ = ["DistcpLayout", "ItemKey", "plan_distcp_file", "torch_bytes"]

ItemKey = tuple[str, tuple[int, ...] | None]
"""The name of a tensor and where the chunk begins in the whole of it, or the name of an object and None."""

_ARCHIVE = "archive"
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class DistcpLayout:
    """A file that is still to be written: its size, where the bytes of each tensor go, and where each item is.

    ``storages[key]`` is (offset, nbytes) of the bytes of the tensor with that key; ``items`` has (key, offset, nbytes)
    of each item in the order of the file, which is what ``.metadata`` says of it. All other bytes come from
    :meth:`frame`.
    """

    nbytes: int
    storages: tuple[tuple[int, int], ...]
    items: tuple[tuple[ItemKey, int, int], ...]
    _contents: tuple[TorchLayout | bytes, ...]

    def frame(self, crcs: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of everything but the tensors, whose CRC-32s by key are ``crcs``; neighbours are joined."""
        return _joined(self._pieces(crcs))

    def _pieces(self, crcs: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
        key = 0
        for (_, start, _), content in zip(self.items, self._contents, strict=True):
            if isinstance(content, bytes):
                yield start, content
            else:
                for offset, data in content.frame({0: crcs[key]}):
                    yield start + offset, data
                key += 1


def _joined(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Pieces that touch as one, up to some size: a zip is framed by two dozen of a few bytes each."""
    start, held = 0, bytearray()
    for offset, data in pieces:
        if held and (offset != start + len(held) or len(held) >= _AT_ONCE):
            yield start, bytes(held)
            held.clear()
        if not held:
            start = offset
        held += data
    if held:
        yield start, bytes(held)


def plan_distcp_file(tree: Mapping[ItemKey, StoredTensor | bytes]) -> DistcpLayout:
    """Lay out the items of ``tree`` in its order: chunks of tensors with the keys 0, 1, 2 .., and objects as bytes.

    Raises:
        ValueError: the keys do not count up, two items share one (each is a zip of its own, so bytes cannot be
            shared), or a key that is no object's has no offsets, or other axes than its tensor.
        UnsupportedError: torch stores no tensors of a type in the way that is written here.
    """
    tensors = [leaf for leaf in tree.values() if isinstance(leaf, StoredTensor)]
    if [tensor.key for tensor in tensors] != list(range(len(tensors))):
        raise ValueError("storage keys must count up from 0 in the order of the items, each of them once")
    planned: dict[tuple[DType, tuple[int, ...]], TorchLayout] = {}
    items: list[tuple[ItemKey, int, int]] = []
    storages: list[tuple[int, int]] = []
    contents: list[TorchLayout | bytes] = []
    position = 0
    for key, leaf in tree.items():
        _check_key(key, leaf)
        content = leaf if isinstance(leaf, bytes) else _planned(planned, key[0], leaf)
        length = len(content) if isinstance(content, bytes) else content.nbytes
        if isinstance(content, TorchLayout):
            offset, nbytes = content.storages[0]
            storages.append((position + offset, nbytes))
        items.append((key, position, length))
        contents.append(content)
        position += length
    return DistcpLayout(position, tuple(storages), tuple(items), tuple(contents))


def _check_key(key: ItemKey, leaf: StoredTensor | bytes) -> None:
    name, start = key
    if (start is None) != isinstance(leaf, bytes):
        raise ValueError(f"{name}: a chunk of a tensor has offsets, an object has none")
    if start is not None and isinstance(leaf, StoredTensor) and len(start) != len(leaf.shape):
        raise ValueError(f"{name}: a chunk of shape {leaf.shape} cannot begin at {start}")


def _planned(planned: dict[tuple[DType, tuple[int, ...]], TorchLayout], name: str, tensor: StoredTensor) -> TorchLayout:
    """The zip of one tensor; tensors of one type and shape differ in their bytes alone, and share it."""
    if tensor.dtype.storage is None:
        raise UnsupportedError(
            f"torch stores no {tensor.dtype} tensors in this way", where=name, remedy="say --dtype bf16"
        )
    kind = tensor.dtype, tensor.shape
    if kind not in planned:
        planned[kind] = plan_torch_file(_ARCHIVE, StoredTensor(0, tensor.dtype, tensor.shape))
    return planned[kind]


def torch_bytes(tree: Any, archive: str = _ARCHIVE) -> bytes:
    """The file that ``torch.save`` writes for plain data without tensors.

    Args:
        tree: nested plain data (see :func:`streamconv.containers.pickles.writer.dumps`).
        archive: the folder inside the zip: torch uses the file's stem, and ``archive`` for a buffer.

    Raises:
        ValueError: there are tensors in it.
        TypeError: the tree holds what is no plain data.
    """
    layout = plan_torch_file(archive, tree)
    if layout.storages:
        raise ValueError("plain data only: there is no one to fill in the bytes of tensors")
    data = bytearray(layout.nbytes)
    for offset, piece in layout.frame({}):
        data[offset : offset + len(piece)] = piece
    return bytes(data)
