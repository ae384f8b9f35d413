"""The tensors of a model's state dict, in a file of any kind.

A pickle may hold tensors whose values are no view of one storage: sparse, quantised, meta and nested ones, those of
other packages' classes. It builds them by functions of their own [``torch/_tensor.py:_reduce_ex_internal``]. The reader
keeps such a call as a record, in which the tensor of a sparse one's indices, for example, is no tensor of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Record
from streamconv.containers.stored_file import named_tensors
from streamconv.core.errors import UnsupportedError
from streamconv.core.lazy import LazyTensor

__all__ = ["state_dict_tensors"]

_BUILDERS = "torch._utils._rebuild_"
_DEEPEST = 16


def state_dict_tensors(state: Any, where: Path) -> dict[str, LazyTensor]:
    """The tensors of a state dict by the dotted paths of their keys.

    Args:
        state: the state dict, as it was read.
        where: the file, for messages.

    Raises:
        UnsupportedError: it has a tensor whose values are no view of one storage, which would be lost, or torn apart.
        DamagedError: two tensors have the same dotted path.
    """
    found = next(_others(state, "", 0), None)
    if found is not None:
        name, builder = found
        raise UnsupportedError(
            f"{name} is a tensor that torch builds with {builder}: only plain ones, on a storage, are read",
            where=where,
            remedy="save it as a plain tensor (.to_dense(), .dequantize()), or leave it out of the state dict",
        )
    return named_tensors(state, where)


def _others(state: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """(name, function that builds it) of each tensor that is no view of one storage."""
    if isinstance(state, Record):
        builder = str(state.cls)
        if builder.startswith(_BUILDERS):
            yield path or "the whole", builder.rpartition(".")[2]
    elif isinstance(state, dict) and depth < _DEEPEST:
        for name, inner in state.items():
            if isinstance(inner, dict | Record):
                yield from _others(inner, f"{path}.{name}" if path else str(name), depth + 1)
