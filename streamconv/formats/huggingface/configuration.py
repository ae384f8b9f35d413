"""The configuration beside a model: ``config.json`` with the ``generation_config.json`` that goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.json_file import read_config
from streamconv.formats.common.model_shards import json_text
from streamconv.formats.huggingface.names import CONFIG, GENERATION
from streamconv.io.reading import reading
from streamconv.models.config.generation import StoredConfig

__all__ = ["config_text", "read_stored_config"]


def read_stored_config(folder: Path) -> StoredConfig | None:
    """The ``config.json`` of a folder with the ``generation_config.json`` beside it, None if there is none.

    Raises:
        DamagedError: one of them is no JSON object.
    """
    if not (folder / CONFIG).is_file():
        return None
    config = StoredConfig(read_config(folder / CONFIG))
    config.generation = read_config(folder / GENERATION) if (folder / GENERATION).is_file() else None
    return config


def config_text(path: Path, config: Mapping[str, Any] | None, said: Mapping[str, Any], dtype: str | None) -> str:
    """The text of a ``config.json`` for tensors of a dtype: as it is stored, byte for byte, if nothing changes.

    Args:
        path: where the source's is stored.
        config: its entries, None if there is none.
        said: the user's entries, which outweigh them.
        dtype: the dtype of most of the tensors, None if none is floating.
    """
    entries = {**(config or {}), **said}
    known = [name for name in ("dtype", "torch_dtype") if name in entries]
    if dtype is not None:
        entries |= dict.fromkeys(known or ("dtype",) * bool(entries.get("model_type")), dtype)
    if config is not None and entries == dict(config):
        with reading(path) as file:
            return file.read(0, file.nbytes).decode("utf-8")
    return json_text(entries)
