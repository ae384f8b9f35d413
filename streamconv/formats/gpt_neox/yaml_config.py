"""GPT-NeoX's configuration files: the plain values of YAML files.

A run is described by one or more files, kept in the checkpoint's folder ``configs`` under their own names
[gpt-neox ``megatron/checkpointing.py:save_ds_checkpoint``]. They are YAML, most in its JSON-like style with comments,
keys spelled with hyphens or underscores; no key is in two files [``megatron/neox_arguments/arguments.py:from_ymls``].
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError
from streamconv.io.reading import reading

__all__ = ["FOLDER", "plain_values", "read_configs"]

FOLDER = "configs"
_SUFFIXES = (".yml", ".yaml", ".json")
_MAX_NBYTES = 64 << 10
_LARGEST = 1 << 63


def read_configs(folder: Path, plain: Collection[str] = ()) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The plain values of all configuration files beside a checkpoint, and the names of the files; both may be empty.

    Args:
        folder: the folder of the checkpoint.
        plain: keys whose values must be plain.

    Raises:
        DamagedError: a file is too large or not YAML, a value of ``plain`` is nested, or two files disagree.
        StorageError: the system refused to read.
    """
    values: dict[str, Any] = {}
    names: list[str] = []
    where = folder / FOLDER
    for path in sorted(where.iterdir()) if where.is_dir() else ():
        if path.suffix not in _SUFFIXES or not path.is_file():
            continue
        names.append(f"{FOLDER}/{path.name}")
        for key, value in _read(path, plain).items():
            other = values.setdefault(key, value)
            # NaN is not equal to itself, but its repr is.
            if other != value and repr(other) != repr(value):
                raise DamagedError(
                    f"{key} is {value!r} here, and {values[key]!r} in another file beside it", where=path
                )
    return values, tuple(names)


def _read(path: Path, plain: Collection[str]) -> dict[str, Any]:
    with reading(path) as file:
        if file.nbytes > _MAX_NBYTES:
            raise DamagedError(f"a configuration of {file.nbytes} bytes; the limit is {_MAX_NBYTES}", where=path)
        data = file.read(0, file.nbytes)
    try:
        return plain_values(data.decode(), plain)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"no YAML: {str(error)[:80]}", where=path) from error


def plain_values(text: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The numbers, strings and booleans at the top level of a YAML mapping; nested values are left out.

    Raises:
        ValueError: ``text`` is no YAML mapping, or the value of a ``needed`` key is nested.
    """
    # Imported here: the import is slow, and no other source needs it.
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses aliases: nested ones can multiply until loading takes for ever."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias, which no configuration needs")
            return super().compose_node(parent, index)

    try:
        loaded = yaml.load(text, Loader)  # noqa: S506 - a SafeLoader, which makes plain values only
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML's constructors let errors of a bad value pass: !!bool "x" raises KeyError.
        raise ValueError(" ".join(str(error).split())) from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ValueError(f"a {type(loaded).__name__}, not a mapping")
    plain = {str(key).replace("-", "_"): value for key, value in (loaded or {}).items()}
    if large := [key for key, value in plain.items() if isinstance(value, int) and not -_LARGEST < value < _LARGEST]:
        raise ValueError(f"{large[0]} is a number of more than 64 bits")
    nested = {key: value for key, value in plain.items() if not (value is None or isinstance(value, str | int | float))}
    if bad := [key for key in nested if key in needed]:
        raise ValueError(f"{bad[0]} is a {type(nested[bad[0]]).__name__}, not a plain value")
    return {key: _number(value) for key, value in plain.items() if key not in nested}


def _number(value: Any) -> Any:
    """A float for a number such as ``1e-5``, which YAML 1.1 reads as a string; other values as they are."""
    try:
        return (
            float(value) if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower() else value
        )
    except ValueError:
        return value
