"""Read JSON objects from files of limited size: a configuration, an index of shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.measure import check_effort
from streamconv.core.effort import Effort
from streamconv.core.errors import DamagedError, UsageError
from streamconv.io.reading import reading

__all__ = ["read_config", "read_entries"]

_MAX_CONFIG_NBYTES = 16 << 20
# So that a product of several has less than 4300 digits, which Python refuses to write.
_MOST_DIGITS = 600
_CORRECT = "if a program wrote it, download or copy it again; if you did, correct it"


def read_entries(path: Path, what: str, limit: int) -> dict[str, Any]:
    """The entries of a JSON object.

    Args:
        path: the file.
        what: the expected content, for messages.
        limit: the most bytes that the file may have.

    Raises:
        SourceError: there is no such file.
        DamagedError: it is too large, or no JSON object.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        if file.nbytes > limit:
            raise DamagedError(f"{file.nbytes} bytes of {what}; the limit is {limit}", where=path, remedy=_CORRECT)
        data = file.read(0, file.nbytes)
    try:
        entries = json.loads(data, parse_int=_int)
        check_effort(entries, Effort(str(path), len(data)))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"no JSON: {str(error)[:80]}", where=path, remedy=_CORRECT) from error
    if not isinstance(entries, dict):
        raise DamagedError(f"no {what}: a JSON {type(entries).__name__}, not an object", where=path, remedy=_CORRECT)
    return entries


def _int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_config(path: Path) -> dict[str, Any]:
    """The entries of a configuration in a JSON file.

    Raises:
        UsageError: there is no such file.
        DamagedError: it is too large, or no JSON object.
        StorageError: the system refused to read.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises an OSError for a name that is too long
        raise UsageError("no such file: it should hold entries of a configuration", where=path)
    return read_entries(path, "configuration", _MAX_CONFIG_NBYTES)
