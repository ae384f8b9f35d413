"""Refuse a source that is not the one that was opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from streamconv.core.errors import DamagedError, SourceError
from streamconv.core.identity import FileIdentity
from streamconv.core.lazy import LazyTensor
from streamconv.io.reading import reading, status_of

__all__ = ["identities_of", "identity_now", "refuse_changed"]

_REMEDY = "begin again when nothing writes to it"


def identities_of(tensors: Iterable[LazyTensor]) -> list[FileIdentity]:
    """The files that tensors are read from, as they were when they were opened, each once, by path."""
    storages = (view.storage for tensor in tensors for piece in tensor.pieces for view in piece.views)
    found = {id(storage.identity): storage.identity for storage in storages if storage.identity is not None}
    return sorted(found.values(), key=lambda identity: identity.path)


def identity_now(path: Path) -> FileIdentity:
    """The identity of a file that has no metadata.

    Raises:
        SourceError: there is no such file.
        StorageError: the system refused.
    """
    with reading(path) as file:
        return file.identity


def refuse_changed(identities: Iterable[FileIdentity]) -> None:
    """Check that files are those that were opened: their size, their time of change, and the bytes of their metadata.

    Raises:
        DamagedError: a file is another one, or gone.
        StorageError: the system refused to read.
    """
    for identity in identities:
        try:
            changed = not identity.matches(status_of(identity.path)) or _digest(identity) != identity.digest
        except SourceError as error:
            raise DamagedError("the file is gone since it was opened", where=identity.path, remedy=_REMEDY) from error
        if changed:
            raise DamagedError("the file was changed after it was opened", where=identity.path, remedy=_REMEDY)


def _digest(identity: FileIdentity) -> bytes:
    digest = hashlib.sha256()
    with reading(identity.path) as file:
        for offset, nbytes in identity.ranges:
            digest.update(file.read(offset, nbytes))
    return digest.digest()
