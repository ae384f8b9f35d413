"""A file of tensors by itself as a source of named tensors: a state dict, or what a trainer saves around one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.open_any import open_any
from streamconv.containers.pickles.reader import leaves_of
from streamconv.containers.state_dict import state_dict_tensors
from streamconv.core.errors import SourceError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.named import NamedModel
from streamconv.formats.options import SourceOptions
from streamconv.formats.remarks import Dropped, Fact
from streamconv.formats.source import SourceFormat

__all__ = ["LONE_FILE", "open_file"]

# Where trainers put the model among the entries of what they save, the most likely first.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module", "model_state", "weights")


def open_file(path: Path, options: SourceOptions | None = None) -> NamedModel:
    """Open a file of tensors, metadata only.

    Raises:
        SourceError: there is no such file, or no tensor in it.
        DamagedError: it is broken.
    """
    file = open_any(path)
    model, dropped, facts = file.state, [], [Fact("one file", file.kind)]
    inner = _state_dict(file.state) if isinstance(file.state, dict) else None
    if inner is not None:
        file.tensors()  # a name that stands twice in the file is damage, wherever it is
        key, others = inner
        model = file.state[key]
        facts.append(Fact(f"the entry {key}", "the others are no part of the model"))
        for name in others:
            held = [tensor for _, tensor in leaves_of(LazyTensor, file.state[name], str(path))]
            if held:
                nbytes = sum(tensor.nbytes for tensor in held)
                dropped.append(Dropped(f"{len(held)} tensors of the entry {name}", nbytes, f"beside the entry {key}"))
    tensors = state_dict_tensors(model, path)
    if set(tensors) == {""}:  # the file is a tensor itself
        tensors = {"tensor": tensors[""]}
    if not tensors:
        raise SourceError("no tensor in the file", where=path)
    return NamedModel(
        path=path,
        home=path.parent,
        format=f"a file, {file.kind}",
        layout="whole tensors",
        tensors=tensors,
        facts=tuple(facts),
        dropped=tuple(dropped),
        named={path: file.globals},
    )


def _state_dict(state: Mapping[Any, Any]) -> tuple[str, list[str]] | None:
    """The entry that is the model, if a file has other entries with it, and these."""
    beside = sum(isinstance(value, LazyTensor) for value in state.values())
    for key in _STATE_DICTS:
        inner = state.get(key)
        held = sum(isinstance(value, LazyTensor) for value in inner.values()) if isinstance(inner, dict) else 0
        # A state dict may have a module of such a name; a step or random numbers beside a model are few.
        if held > beside:
            return key, [str(other) for other in state if other != key]
    return None


LONE_FILE = SourceFormat("file", open_file, lambda _: None, lambda _: None, SourceOptions, "lone file")
"""A file of tensors; a folder is none."""
