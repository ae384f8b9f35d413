"""``generation_config.json`` of a source: no weight depends on it, so that a fault in it is a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamconv.containers.json_file import read_config
from streamconv.core.errors import StorageError, StreamconvError
from streamconv.formats.huggingface.names import GENERATION
from streamconv.models.config.generation import checked

__all__ = ["read_generation"]

_INSTEAD = "it is left out, and made of config.json, as without one"


def read_generation(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """(its valid entries, None if there are none that can be read; warnings)."""
    path = folder / GENERATION
    if not path.exists() and not path.is_symlink():
        return None, []
    try:
        entries = read_config(path)
    except StorageError:
        raise
    except StreamconvError as error:
        # Whatever is wrong with it. transformers makes one of config.json where it is no JSON.
        return None, [f"{GENERATION}: {error.what}: {_INSTEAD}"]
    valid, faults = checked(entries)
    return valid, [f"{GENERATION}: {fault}: left out" for fault in faults]
