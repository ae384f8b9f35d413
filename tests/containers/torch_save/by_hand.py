"""Pickles with persistent ids and calls that ``torch.save`` never writes."""

from __future__ import annotations

import io
import pickle
from typing import Any


class Ref:
    """A persistent id."""

    def __init__(self, identifier: Any) -> None:
        self.identifier = identifier


class Call:
    """A call that is made when the pickle is loaded."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.identifier if isinstance(value, Ref) else None


def pickled(*values: Any) -> bytes:
    """Each value as a pickle of protocol 2, one behind the other."""
    buffer = io.BytesIO()
    for value in values:
        _Pickler(buffer, 2).dump(value)
    return buffer.getvalue()
