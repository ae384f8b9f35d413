"""The types that target formats take and return.

A framework's module ``target`` defines a ``TARGET``; the registry finds it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from streamconv.core.dtypes import DType
from streamconv.core.layout import ParallelLayout, RankCoordinates
from streamconv.core.lazy import LazyTensor
from streamconv.formats.options import TargetOptions, TrainingOptions
from streamconv.formats.source import Fact
from streamconv.models.family import ModelFamily
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import ModelSizes, ParameterId

__all__ = [
    "Container",
    "FileLayout",
    "NameSlot",
    "NamedTarget",
    "Slot",
    "TargetFile",
    "TargetFiles",
    "TargetFormat",
    "TargetModel",
]

O_co = TypeVar("O_co", bound=TargetOptions, covariant=True)


class Slot(NamedTuple):
    """A tensor's place in an output file: which parameter it is, and how it is stored there.

    ``part`` names a single part of a fused parameter; a ``transposed`` matrix is stored ``(in, out)``; a ``stacked``
    tensor has an axis of size 1 before its own, for its layer.
    """

    parameter: ParameterId
    part: str | None = None
    transposed: bool = False
    stacked: bool = False


class NameSlot(NamedTuple):
    """A tensor's place in an output file that keeps names: which tensor it is."""

    name: str


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """Tensors to lay out under their names, in order, with the dtypes that they have in the result.

    ``shared`` are names that share the parameter of another name. ``config`` is the source's ``config.json``, None if
    it has none; ``home`` the folder that it is in; ``supplied`` are the user's entries of it. ``adapter`` is the text
    of the ``adapter_config.json`` if they are an adapter's.
    """

    tensors: Mapping[str, LazyTensor]
    shared: Mapping[str, str]
    config: Mapping[str, Any] | None
    home: Path
    supplied: Mapping[str, Any]
    options: Any
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class TargetModel(Generic[O_co]):
    """A model to lay out, and the user's options for the result, those of the target's own dataclass.

    ``sizes`` has the target's padded vocabulary, of which ``vocab_size`` rows are true (None if unknown).
    ``args`` are the source's training arguments, ``config`` its ``config.json``, if it has one. ``supplied`` are
    the user's entries of the target's configuration. ``iteration`` is None if the source has none. ``dtype`` is the
    dtype that floating tensors are cast to, None if they are not cast; ``tensor_of`` returns a slot's tensor on rank 0,
    for its dtype and size. ``fork`` is the code that wrote the source, if it is a DeepSpeed folder, ``spec`` the
    Megatron-Core spec whose names the source's norms have.
    """

    family: ModelFamily
    sizes: ModelSizes
    layout: ParallelLayout
    has_head: bool
    args: Mapping[str, Any] | None
    iteration: int | None
    dtype: DType | None
    vocab_size: int | None
    config: Mapping[str, Any] | None
    supplied: Mapping[str, Any]
    fork: str | None
    spec: str | None
    tensor_of: Callable[[Slot, RowOrders], LazyTensor]
    options: O_co


class FileLayout(Protocol):
    """The byte layout of a file that is to be written."""

    @property
    def nbytes(self) -> int:
        """The size of the file in bytes."""
        ...

    @property
    def storages(self) -> tuple[tuple[int, int], ...]:
        """(offset, nbytes) of each tensor, by its key."""
        ...

    def frame(self, crcs: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of everything but the tensors; ``crcs`` are their CRC-32s by key."""
        ...


Container = Callable[[Any], FileLayout]
"""Lays out a tree with ``StoredTensor`` leaves as one file."""


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A file of the result: path below the destination, its container, a tree with :class:`Slot` leaves, or
    :class:`NameSlot` leaves if names are kept.

    ``rank`` is the rank whose shards it holds. ``model`` is the entry of the tree that is the model's state dict, empty
    if the tree itself is. Files that share a tree must share a container.
    """

    path: str
    container: Container
    rank: RankCoordinates
    tree: Any
    model: str


@dataclass(frozen=True, slots=True)
class TargetFiles:
    """All files of a result, with facts and warnings about them.

    ``texts`` are the commit record, written last; ``small`` are other small files. ``owned`` are
    patterns (:mod:`fnmatch`) of names in the destination's root that are part of a checkpoint of this kind. ``orders``
    are the orders of fused rows.
    """

    files: tuple[TargetFile, ...]
    texts: Mapping[str, str]
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...] = ()
    orders: RowOrders = field(default_factory=RowOrders)
    small: Mapping[str, str | bytes] = field(default_factory=dict)
    owned: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """The names of all files, which are their paths below the destination."""
        return {*self.texts, *self.small, *(file.path for file in self.files)}


@dataclass(frozen=True, slots=True)
class TargetFormat:
    """A framework's checkpoints as a target.

    ``refusal`` returns why a family cannot be written, None if it can. ``options`` is the dataclass of the options that
    ``lay_out`` takes. ``is_core`` says that it is Megatron-Core: its arguments can express more, and a rank may hold a
    slice of a group's rows, ``keeps_names`` that it takes any model, as a :class:`NamedTarget`.
    """

    name: str
    lay_out: Callable[[Any], TargetFiles]
    refusal: Callable[[ModelFamily], str | None]
    options: type[TargetOptions]
    is_core: bool = False
    keeps_names: bool = False

    @property
    def is_sharded(self) -> bool:
        """Whether it has tensor- and pipeline-parallel ranks; otherwise it has one rank."""
        return issubclass(self.options, TrainingOptions)
