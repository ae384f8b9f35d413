"""Plan a ``.safetensors`` file, with every byte's place known before the first is written.

The format is that of ``safetensors/src/tensor.rs``: 8 bytes of header length, little-endian; a JSON header of at most
``MAX_HEADER_SIZE`` bytes, padded with spaces so that the data begin at a multiple of 8 (``prepare``); the tensors in
the order of the header, without holes (``Metadata::validate``). There are no checksums. ``prepare`` sorts by dtype,
the widest first, and then by name. Here too the widest come first, which keeps each tensor aligned, but tensors of one
width keep the order in which they are given. Where the orders agree, the tests compare the result byte by byte with the
package's own files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.containers.pickles.writer import StoredTensor
from streamconv.containers.safetensors.reader import DTYPE_NAMES, MAX_HEADER_NBYTES, METADATA
from streamconv.core.errors import UnsupportedError

__all__ = ["SafetensorsLayout", "plan_safetensors_file"]

_ALIGNMENT = 8
# As transformers/modeling_utils.py:save_pretrained writes; older releases refuse to load a file without it.
_WORDS = {"format": "pt"}
_WORD_OF = {name: word for word, name in DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True)
class SafetensorsLayout:
    """The layout of a file to be written: its size, and the place of each storage.

    ``storages[key]`` is (offset, nbytes) of the tensor with that key. All other bytes are ``header``, at the beginning
    of the file: the 8 bytes of its length, the JSON and its padding.
    """

    nbytes: int
    storages: tuple[tuple[int, int], ...]
    header: bytes

    def frame(self, crcs: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of everything but the storages; this container records no checksums."""
        yield 0, self.header


def plan_safetensors_file(tree: Mapping[str, StoredTensor]) -> SafetensorsLayout:
    """Lay out the tensors of ``tree``, whose keys are 0, 1, 2 .. in the order of the names.

    Raises:
        ValueError: the keys do not count up, or two names share one, which safetensors does not support.
        UnsupportedError: safetensors does not support a type, a name, or the length of the header.
    """
    if [tensor.key for tensor in tree.values()] != list(range(len(tree))):
        raise ValueError("storage keys must count up from 0 in the order of the names, each of them once")
    starts = [0] * len(tree)
    entries: dict[str, Any] = {METADATA: _WORDS}
    position = 0
    for name, tensor in sorted(tree.items(), key=lambda item: -item[1].dtype.itemsize):
        _check_name(name)
        end = position + tensor.nbytes
        entries[name] = {
            "dtype": _word(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        starts[tensor.key] = position
        position = end
    header = _header(entries)
    storages = tuple((len(header) + start, tensor.nbytes) for start, tensor in zip(starts, tree.values(), strict=True))
    return SafetensorsLayout(len(header) + position, storages, header)


def _check_name(name: str) -> None:
    if name == METADATA:
        raise UnsupportedError(f"safetensors keeps the name {METADATA} for itself: no tensor can have it")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedError(
            "safetensors names are UTF-8, which has no half characters", where=ascii(name)
        ) from error


def _word(name: str, tensor: StoredTensor) -> str:
    word = _WORD_OF.get(tensor.dtype.name)
    if word is None:
        raise UnsupportedError(f"safetensors has no type for {tensor.dtype}", where=name)
    return word


def _header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_NBYTES:
        raise UnsupportedError(
            f"the header of {len(entries) - 1} tensors has {len(text)} bytes; safetensors reads {MAX_HEADER_NBYTES}"
        )
    return len(text).to_bytes(8, "little") + text
