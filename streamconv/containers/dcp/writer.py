"""Plan the ``.distcp`` file that ``torch.distributed.checkpoint`` would write, every byte's place known beforehand.

The format is that of ``torch/distributed/checkpoint/filesystem.py``. ``_write_item`` records the position of the stream
before and after each item: items follow one another, with nothing before, between or after them. A tensor is stored as
``torch.save(tensor, stream)`` writes it, as a whole zip. Offsets and the alignment to 64 bytes count from the zip's own
beginning (``torch/serialization.py:_open_zipfile_writer_buffer``; its ``PyTorchFileWriter`` counts the bytes that it
wrote). The folder in the zip is called ``archive``, the name that ``caffe2/serialize/inline_container.cc`` uses without
a file name. An object is stored as the bytes that the planner made of it; torch's and Megatron's planners use
``torch.save`` into a buffer. ``_write_files_from_queue`` writes the objects first. The tests compare the result byte by
byte with torch's own files.
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
"""(name of a tensor, start of the chunk in the whole tensor), or (name of an object, None)."""

_ARCHIVE = "archive"
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class DistcpLayout:
    """The layout of a file to be written: its size, and the places of the tensors' bytes and of the items.

    ``storages[key]`` is (offset, nbytes) of the bytes of the tensor with that key. ``items`` contains (key, offset,
    nbytes) of each item in the order of the file, as ``.metadata`` records them. All other bytes come from
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
    """The pieces, adjacent ones joined up to about 1 MiB: the frame of a zip is two dozen pieces of a few bytes."""
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
            shared), or a tensor's key has no offsets, or another number of axes than the tensor.
        UnsupportedError: torch has no storage class for a tensor's type.
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
    """The layout of one tensor's zip; tensors of the same type and shape share it."""
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
        ValueError: the tree contains tensors.
        TypeError: the tree contains something that is not plain data.
    """
    layout = plan_torch_file(archive, tree)
    if layout.storages:
        raise ValueError("plain data only: there is no one to fill in the bytes of tensors")
    data = bytearray(layout.nbytes)
    for offset, piece in layout.frame({}):
        data[offset : offset + len(piece)] = piece
    return bytes(data)
