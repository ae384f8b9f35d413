"""What formats say and are told of a checkpoint that is to be laid out.

A module in this package that writes a framework's checkpoints holds a ``TARGET``, and is found there by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from streamconv.core.dtypes import DType
from streamconv.core.layout import ParallelLayout, RankCoordinates
from streamconv.core.lazy import LazyTensor
from streamconv.formats.source import Fact
from streamconv.models.family import ModelFamily
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import ModelSizes, ParameterId

__all__ = ["Container", "CoreChoices", "FileLayout", "Slot", "TargetFile", "TargetFiles", "TargetFormat", "TargetModel"]


class Slot(NamedTuple):
    """A tensor's place in a file that is to be laid out: which parameter it is, and how it is stored there.

    ``part`` is one part of a fused parameter by itself; a ``transposed`` matrix is stored ``(in, out)``; one that is
    ``stacked`` has an axis of size 1 before its own, for its layer.
    """

    parameter: ParameterId
    part: str | None = None
    transposed: bool = False
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class CoreChoices:
    """What the user wants of a Megatron-Core checkpoint; None means the default.

    ``container`` is ``torch_dist`` or ``torch``, ``spec`` whose names the norms have, ``te`` or ``local``, ``release``
    the Megatron-LM that is to load it.
    """

    container: str | None = None
    spec: str | None = None
    release: str | None = None


@dataclass(frozen=True, slots=True)
class TargetModel:
    """A model that is to be laid out, and what the user wants of the result.

    ``sizes`` has the target's padded vocabulary, of which ``vocab_size`` rows are true (None if that is unknown).
    ``args`` are the source's training arguments, ``config`` its ``config.json``, if it has one. ``supplied`` are
    entries of the target's configuration that the user says. ``iteration`` is None where the source has none.
    ``dtype`` is what floating tensors are cast to, None if they stay; ``tensor_of`` gives a slot's tensor on rank 0,
    for its dtype and size. ``fork`` is the code that wrote the source, if it is a DeepSpeed folder.
    """

    family: ModelFamily
    sizes: ModelSizes
    layout: ParallelLayout
    has_head: bool
    args: Mapping[str, Any] | None
    iteration: int | None
    dtype: DType | None
    dialect: str
    for_release: bool
    keep_args: bool
    vocab_size: int | None
    config: Mapping[str, Any] | None
    supplied: Mapping[str, Any]
    fork: str | None
    max_shard_nbytes: int
    tensor_of: Callable[[Slot, RowOrders], LazyTensor]
    core: CoreChoices = field(default_factory=CoreChoices)


class FileLayout(Protocol):
    """A file that is still to be written."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    @property
    def storages(self) -> tuple[tuple[int, int], ...]:
        """(offset, nbytes) of each tensor, by its key."""
        ...

    def frame(self, crcs: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of everything but the tensors, whose CRC-32s by key are ``crcs``."""
        ...


Container = Callable[[Any], FileLayout]
"""Lays out a tree with ``StoredTensor`` leaves as one file."""


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A file of the result: path below the destination, its container, a tree with :class:`Slot` leaves.

    ``rank`` is whose shards it holds; ``model`` is the entry
    of the tree that is the model's state dict, empty if the tree is. Files that share a tree must share a container.
    """

    path: str
    container: Container
    rank: RankCoordinates
    tree: Any
    model: str


@dataclass(frozen=True, slots=True)
class TargetFiles:
    """All files of a result, and what a user should know of them.

    ``texts`` are the commit record, written last; ``small`` are texts that are part of the result. ``owned`` are
    patterns (:mod:`fnmatch`) of names in the destination's root that are part of a checkpoint of this kind. ``orders``
    are those of fused rows.
    """

    files: tuple[TargetFile, ...]
    texts: Mapping[str, str]
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...] = ()
    orders: RowOrders = field(default_factory=RowOrders)
    small: Mapping[str, str | bytes] = field(default_factory=dict)
    owned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetFormat:
    """A framework's checkpoints as a target; the first of ``dialects`` is the default.

    ``is_sharded`` says whether tensor and pipeline parallelism are kept or changed; a target that is not has one rank.
    ``refusal`` says why a model cannot be written so, None if it can. ``takes`` are those flags, of the ones that only
    some targets know, that mean something here. ``is_core`` says that it is Megatron-Core: its arguments can say more,
    and a rank may hold a slice of a group's rows.
    """

    name: str
    dialects: tuple[str, ...]
    lay_out: Callable[[TargetModel], TargetFiles]
    refusal: Callable[[ModelFamily], str | None]
    is_sharded: bool = True
    takes: frozenset[str] = frozenset()
    is_core: bool = False
