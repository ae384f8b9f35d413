"""An opened file of tensors: the result of every reader in this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Global
from streamconv.containers.pickles.reader import leaves_of
from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.views import Storage

__all__ = ["StoredFile", "named_tensors"]


def named_tensors(tree: Any, where: Path) -> dict[str, LazyTensor]:
    """Every tensor in a tree by the dotted path of its keys.

    Raises:
        DamagedError: two tensors have the same dotted path.
    """
    tensors: dict[str, LazyTensor] = {}
    for path, tensor in leaves_of(LazyTensor, tree, str(where)):
        name = ".".join(map(str, path))
        if name in tensors:
            raise DamagedError(f"two tensors are named {name}", where=where)
        tensors[name] = tensor
    return tensors


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An opened file: its plain state with :class:`LazyTensor` leaves, and the places of its bytes.

    Attributes:
        path: the file.
        kind: "torch zip", "torch before 1.6", "safetensors" or "distcp".
        state: a tree of dicts, lists, tuples, inert records and globals, with lazy tensors as leaves.
        storages: the tensor data by key.
        crc_disabled: the container records checksums, and the writer left out those of all tensor data
            (``torch.serialization.set_crc32_options(False)``).
        globals: each class or function that a pickle names, and how often the pickle called it.
        notes: remarks for the user.
    """

    path: Path
    kind: str
    state: Any
    storages: dict[str, Storage]
    crc_disabled: bool = False
    globals: Mapping[Global, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    locate: Callable[[], tuple[Storage, ...]] | None = field(default=None, repr=False, compare=False)

    def tensors(self) -> dict[str, LazyTensor]:
        """Every tensor in the file by the dotted path of its keys.

        Raises:
            DamagedError: two tensors have the same dotted path.
        """
        return named_tensors(self.state, self.path)

    def records(self) -> tuple[Storage, ...]:
        """Every record of the container that is not empty, in the order of the file, with its CRC-32 if it has one.

        A zip's directory is read again for this, so its pickle and its small records are included.

        Raises:
            DamagedError: the container has been changed or a record is not where the directory says.
            UnsupportedError: a record is compressed.
            SourceError: the file is gone.
            StorageError: the system refused to read.
        """
        records = self.storages.values() if self.locate is None else self.locate()
        return tuple(sorted((record for record in records if record.nbytes), key=lambda record: record.offset))
