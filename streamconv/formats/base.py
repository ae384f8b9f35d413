"""What formats say and are told: of a checkpoint that was opened, and of one that is to be laid out.

A module in this package that reads a framework's checkpoints holds a ``SOURCE``, one that writes them a ``TARGET``;
both are found there by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from streamconv.dtypes import DType
from streamconv.errors import DamagedError, UsageError
from streamconv.families.base import ModelFamily, ModelSizes, Section
from streamconv.families.rows import GluOrder, QkvLayout, RowOrders
from streamconv.files.pickle_machine import Global
from streamconv.lazy import LazyTensor
from streamconv.parallel import ParallelLayout

__all__ = [
    "Container",
    "Dropped",
    "Fact",
    "FileLayout",
    "Place",
    "ShardedModel",
    "Slot",
    "SourceFormat",
    "SourceOptions",
    "TargetFile",
    "TargetFiles",
    "TargetFormat",
    "TargetModel",
    "positive_int",
]

Place = tuple[Section, int, str]
"""(section, layer from 0 or -1, key in the section)."""


def positive_int(args: Mapping[str, Any] | None, name: str, where: Path) -> int | None:
    """A training argument that counts something, or None if it is not there.

    Raises:
        DamagedError: it is no whole number above 0.
    """
    value = (args or {}).get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise DamagedError(f"args.{name} is {str(value)[:40]!r}, not a number above 0", where=where)
    return value


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something that stays behind on purpose, and why."""

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A thing that was found out about the source, and what it was found out from."""

    what: str
    evidence: str


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the user says of a source that does not say it itself, or says it wrongly.

    ``config`` are entries of a configuration: of a ``config.json``, or training arguments for a target that has them.
    """

    tag: str | None = None
    pp_layers: tuple[int, ...] | None = None
    qkv_layout: QkvLayout | None = None
    glu_order: GluOrder | None = None
    num_heads: int | None = None
    iteration: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def said(
        cls,
        tag: str | None = None,
        pp_layers: tuple[int, ...] | None = None,
        qkv_layout: str | None = None,
        glu_order: str | None = None,
        num_heads: int | None = None,
        iteration: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> SourceOptions:
        """What the user says, in the user's words.

        Raises:
            UsageError: a word is not known, or a number is too small.
        """
        for flag, word, choices in (("--qkv-layout", qkv_layout, QkvLayout), ("--glu-order", glu_order, GluOrder)):
            names = [choice.value for choice in choices]
            if word not in (None, *names):
                raise UsageError(f"{flag} {word}: no such choice", remedy=f"choose one of {', '.join(names)}")
        for flag, number, least in (("--num-heads", num_heads, 1), ("--iteration", iteration, 0)):
            if number is not None and number < least:
                raise UsageError(f"{flag} {number}: must be at least {least}")
        return cls(
            tag,
            pp_layers,
            QkvLayout(qkv_layout) if qkv_layout else None,
            GluOrder(glu_order) if glu_order else None,
            num_heads,
            iteration,
            config or {},
        )


@dataclass(slots=True)
class ShardedModel:
    """A model as it is stored: ``tensors[place][rank]`` is the shard of tensor-parallel rank ``rank``.

    ``stages`` is the number of layers on each pipeline stage, None where nothing says so. ``args`` are the training
    arguments as plain attributes, by the names of Megatron-DeepSpeed, None where the folder has none. ``config`` is the
    ``config.json`` of a Hugging Face folder. ``family`` is the family that the folder names, ``fork`` the code that
    wrote it (:mod:`streamconv.formats.deepspeed_evidence`), None if unknown. ``qkv`` and ``glu`` are the orders of
    fused rows, None where nothing is fused so; ``shares`` says that ranks hold shares of the parameters that can be
    summed. ``copies`` are tensors that are stored once more (a tied head on the
    last stage): name, the copy, what it must equal; ``copies_must_equal`` refuses one that does not. ``named`` is what
    the pickle of each file that was opened names, and how often it called it.
    """

    path: Path
    format: str
    tp: int
    num_layers: int
    tensors: dict[Place, tuple[LazyTensor, ...]]
    stages: tuple[int, ...] | None
    pp: int | None
    args: Mapping[str, Any] | None
    iteration: int | None
    vocab_size: int | None
    qkv: QkvLayout | None
    glu: GluOrder | None = None
    shares: bool = False
    config: Mapping[str, Any] | None = None
    family: str | None = None
    fork: str | None = None
    facts: list[Fact] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    copies: list[tuple[str, LazyTensor, LazyTensor]] = field(default_factory=list)
    copies_must_equal: bool = False
    named: dict[Path, Mapping[Global, int]] = field(default_factory=dict)

    def keys(self, section: Section, layer: int = -1) -> set[str]:
        """The keys stored in a section."""
        return {key for found, number, key in self.tensors if (found, number) == (section, layer)}

    def keys_by_layer(self) -> dict[int, set[str]]:
        """The keys stored in each transformer layer."""
        found: dict[int, set[str]] = {}
        for section, layer, key in self.tensors:
            if section is Section.LAYER:
                found.setdefault(layer, set()).add(key)
        return found

    @property
    def orders(self) -> RowOrders:
        """The orders of fused rows."""
        return RowOrders(self.qkv or QkvLayout.INTERLEAVED, self.glu or GluOrder.GATE_UP, self.shares)


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """A framework's checkpoints as a source. ``open`` raises what :mod:`streamconv.errors` says, never returns less.

    ``claims`` says what makes a folder this framework's, in words; None if nothing does. ``refusal`` says why there are
    no checkpoints of a family in this format, None if there are.
    """

    name: str
    open: Callable[[Path, SourceOptions], ShardedModel]
    claims: Callable[[Path], str | None]
    refusal: Callable[[ModelFamily], str | None]


class Slot(NamedTuple):
    """A tensor's place in a file that is to be laid out: its section, global layer (or -1) and key in the section.

    ``part`` is one part of a fused parameter by itself; a ``transposed`` matrix is stored ``(in, out)``.
    """

    section: Section
    layer: int
    key: str
    part: str | None = None
    transposed: bool = False


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

    ``rank`` is the tensor-parallel rank and ``stage`` the pipeline stage whose shards it holds; ``model`` is the entry
    of the tree that is the model's state dict, empty if the tree is. Files that share a tree must share a container.
    """

    path: str
    container: Container
    rank: int
    stage: int
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
    small: Mapping[str, str] = field(default_factory=dict)
    owned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetFormat:
    """A framework's checkpoints as a target; the first of ``dialects`` is the default.

    ``is_sharded`` says whether tensor and pipeline parallelism are kept or changed; a target that is not has one rank.
    ``refusal`` says why a model cannot be written so, None if it can.
    """

    name: str
    dialects: tuple[str, ...]
    lay_out: Callable[[TargetModel], TargetFiles]
    refusal: Callable[[ModelFamily], str | None]
    is_sharded: bool = True
