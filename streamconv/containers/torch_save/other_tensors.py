"""Tensors whose values are no view of one storage: sparse, quantised, nested ones, those of other packages' classes.

A pickle builds them by functions of their own [``torch/_tensor.py:_reduce_ex_internal``]. The reader keeps such a call
as a record, in which an indices' tensor, for one, is no tensor of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Record
from streamconv.core.errors import UnsupportedError

__all__ = ["refuse_other_tensors"]

_BUILDERS = "torch._utils._rebuild_"
_DEEPEST = 16


def refuse_other_tensors(state: Any, where: Path) -> None:
    """Refuse a state dict that has a tensor whose values are no view of one storage: it would be lost, or torn apart.

    Raises:
        UnsupportedError: there is one, by name.
    """
    for name, builder in _others(state, "", 0):
        raise UnsupportedError(
            f"{name} is a tensor that torch builds with {builder}: only plain ones, on a storage, are read",
            where=where,
            remedy="save it as a plain tensor (.to_dense(), .dequantize()), or leave it out of the state dict",
        )


def _others(state: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(state, Record):
        builder = str(state.cls)
        if builder.startswith(_BUILDERS):
            yield path or "the whole", builder.rpartition(".")[2]
    elif isinstance(state, dict) and depth < _DEEPEST:
        for name, inner in state.items():
            if isinstance(inner, dict | Record):
                yield from _others(inner, f"{path}.{name}" if path else str(name), depth + 1)
