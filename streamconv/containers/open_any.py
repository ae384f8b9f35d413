"""Open a file of tensors, whatever its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from streamconv.containers.safetensors.reader import open_safetensors
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.io.reading import reading
from streamconv.io.refusals import refusals

__all__ = ["CHECKPOINT_SUFFIXES", "all_files", "checkpoint_files", "open_any"]

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".distcp")
"""The suffixes of files of tensors, of all containers."""


def open_any(path: Path) -> StoredFile:
    """Open a torch file (zip or older), a safetensors file or a ``.distcp``, metadata only.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it is none of these.
        DamagedError: it is one of these and broken.
        UnsafeError: its metadata is too large or does what no checkpoint needs.
        StorageError: the system refused.
    """
    with reading(path) as file:
        head = file.read(0, 9)
    if path.suffix == ".distcp":
        # Imported here: a torch file, which is the usual case, does not need it.
        from streamconv.containers.dcp.reader import open_distcp

        return open_distcp(path)
    # A safetensors file is a length in 8 bytes and then JSON; no torch file has a brace there.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return open_safetensors(path)
    return open_torch(path)


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of tensors below a folder, by their suffixes; see :func:`all_files`."""
    return [path for path in all_files(folder) if path.suffix in CHECKPOINT_SUFFIXES]


def all_files(folder: Path) -> list[Path]:
    """The files below a folder, sorted by path, without those in hidden folders. Links to folders are followed.

    Raises:
        StorageError: the system refused to list a folder.
    """
    return sorted(_files(folder, frozenset()))


def _files(folder: Path, around: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in around:  # a link to a folder that it is in
        return
    with refusals("list the folder", folder):
        children = list(folder.iterdir())
    for child in children:
        if child.is_file():
            yield child
        elif child.is_dir() and not child.name.startswith("."):
            yield from _files(child, around | {real})
