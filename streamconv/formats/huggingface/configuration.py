"""The configuration beside a model: ``config.json`` with the ``generation_config.json`` that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.containers.json_file import read_config
from streamconv.formats.common.model_shards import json_text
from streamconv.formats.huggingface.generation import read_generation
from streamconv.formats.huggingface.names import CONFIG
from streamconv.io.reading import reading
from streamconv.models.config.generation import StoredConfig

__all__ = ["config_text", "dtype_name", "read_stored_config"]

_DTYPES = ("dtype", "torch_dtype")


def read_stored_config(folder: Path) -> tuple[StoredConfig | None, list[str]]:
    """(``config.json`` of a folder with the ``generation_config.json`` beside it, None if there is none; warnings).

    Raises:
        DamagedError: ``config.json`` is no JSON object.
    """
    if not (folder / CONFIG).is_file():
        return None, []
    config = StoredConfig(read_config(folder / CONFIG))
    config.generation, faults = read_generation(folder)
    return config, faults


def dtype_name(stored: Sequence[str], config: Mapping[str, Any] | None) -> str:
    """The dtype that a model is loaded in: of unlike ones that of the source's config.json, else the commonest.

    Args:
        stored: the dtypes of its floating tensors.
        config: the source's ``config.json``, None if it has none.
    """
    own = {name for name in set(stored) if name in [(config or {}).get(entry) for entry in _DTYPES]}
    return own.pop() if len(own) == 1 else max(sorted(set(stored)), key=stored.count)


def config_text(path: Path, config: Mapping[str, Any] | None, said: Mapping[str, Any], dtype: str | None) -> str:
    """The text of a ``config.json`` for tensors of a dtype: as it is stored, byte for byte, if nothing changes.

    Args:
        path: where the source's is stored.
        config: its entries, None if there is none.
        said: the user's entries, which outweigh them.
        dtype: the dtype of most of the tensors, None if none is floating.
    """
    entries = {**(config or {}), **said}
    known = [name for name in _DTYPES if name in entries]
    if dtype is not None:
        entries |= dict.fromkeys(known or ("dtype",) * bool(entries.get("model_type")), dtype)
    if config is not None and entries == dict(config):
        with reading(path) as file:
            return file.read(0, file.nbytes).decode("utf-8")
    return json_text(entries)
