"""Recognise Megatron-Core's folders by the names in a rank's file, or by the ``.metadata`` of ``torch_dist``."""

from __future__ import annotations

from pathlib import Path

from streamconv.containers.dcp.metadata_reader import NAME as METADATA
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import StorageError, StreamconvError
from streamconv.core.layout import FIRST_RANK
from streamconv.formats.megatron.core.names import parse_core_name
from streamconv.formats.megatron.folder import CONFIG_FILE, find_ranks, holds_ranks, is_distributed, iteration_folders
from streamconv.formats.megatron.rank_files import model_names

__all__ = ["claims", "dist_folder", "is_core"]


def claims(path: Path) -> str | None:
    """What makes a folder a Megatron-Core checkpoint or the root of some, None if nothing does."""
    if not path.is_dir():
        return None
    if (folder := dist_folder(path)) is not None:
        name = METADATA if (folder / METADATA).is_file() else CONFIG_FILE
        return f"the file {(folder / name).relative_to(path)}"
    if is_core(path):
        return "rank folders whose models have Megatron-Core's names"
    return None


def dist_folder(path: Path) -> Path | None:
    """The ``torch_dist`` folder at ``path`` or in an iteration's folder below it; None if there is none."""
    for folder in (path, *iteration_folders(path)[:1]):
        if is_distributed(folder):
            return folder
    return None


def is_core(path: Path) -> bool:
    """Whether the first rank's file of the checkpoint at ``path``, or below it, has Megatron-Core's names.

    False if the file is no such file; the reader of the checkpoint reports why.

    Raises:
        StorageError: the system refused to read it.
    """
    folders = [path] if holds_ranks(path) else [f for f in iteration_folders(path)[:1] if holds_ranks(f)]
    for folder in folders:
        try:
            file = open_torch(folder / find_ranks(folder).files[FIRST_RANK])
            model = file.state[model_names(file)[0]]
        except StorageError:
            raise
        except StreamconvError:
            return False
        names = [key for key in model if isinstance(key, str)] if isinstance(model, dict) else []
        return any(parse_core_name(name) is not None for name in names)
    return False
