"""A model as whole tensors by name, whatever container its bytes are in, and whosever names they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Global
from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.replica import Replica
from streamconv.core.tiling import Box
from streamconv.formats.remarks import Remarked

__all__ = ["NamedModel"]


@dataclass(frozen=True, slots=True)
class NamedModel(Remarked):
    """A model as a container holds it. It is immutable: a function that changes something returns another one.

    Attributes:
        path: the folder or file of the tensors.
        home: the folder that has what goes along with the model: its configuration, its tokenizer.
        format: the container in words.
        layout: how it is spread over ranks, in words.
        tensors: whole tensors by name, in the order of the model.
        shared: names that share the parameter of another name, and that name; both are among ``tensors``.
        sources: the stored tensors that ``tensors`` are cut from, by a name for messages, each one stored view. Empty
            if each of ``tensors`` is stored as it is.
        padding: the boxes of ``sources`` that are no part of any parameter.
        config: the entries of ``config.json``, None if there is none.
        iteration: the training step, None if unknown.
        weights: which of a run's two copies of the parameters ``tensors`` are, ``model`` or ``master``; None if there
            is one alone.
        masters: where the masters are, in words, if ``tensors`` are the model and there are some.
        buffers: names that are no parameters, where the container says so.
        frozen: names of parameters that are not trained, where the container says so.
        placeholders: tensors whose bytes are elsewhere, such as ZeRO-3's of no elements.
        lost: names that an index has and no file: nobody knows here whether the model needs them.
        replicas: copies of parameters that several ranks or files hold, of which ``tensors`` have one.
        named: for each opened file the classes and functions that its pickle names, with the number of calls.
    """

    path: Path
    home: Path
    format: str
    layout: str
    tensors: Mapping[str, LazyTensor]
    shared: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, LazyTensor] = field(default_factory=dict)
    padding: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    iteration: int | None = None
    weights: str | None = None
    masters: str | None = None
    buffers: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    placeholders: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()
    replicas: tuple[Replica, ...] = ()
    named: Mapping[Path, Mapping[Global, int]] = field(default_factory=dict)

    @property
    def loss(self) -> DamagedError | None:
        """The error for a model that lacks tensors which its index names, None if it has all."""
        if not self.lost:
            return None
        return DamagedError(
            f"{len(self.lost)} tensors are in the index, and in no file, the first is {self.lost[0]}",
            where=self.path,
            remedy="fetch the model again; or leave them out of the index, if the model has none",
        )

    def renamed(self, names: Mapping[str, str]) -> NamedModel:
        """The same model with other names; a name that is not in ``names`` stays."""
        return replace(
            self,
            tensors={names.get(name, name): tensor for name, tensor in self.tensors.items()},
            shared={names.get(name, name): names.get(kept, kept) for name, kept in self.shared.items()},
            frozen=frozenset(names.get(name, name) for name in self.frozen),
            buffers=frozenset(names.get(name, name) for name in self.buffers),
            placeholders=frozenset(names.get(name, name) for name in self.placeholders),
        )
