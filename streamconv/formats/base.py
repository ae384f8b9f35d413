"""What formats say and are told: of a checkpoint that was opened, and of one that is to be laid out.

A module in this package that reads a framework's checkpoints holds a ``SOURCE``, one that writes them a ``TARGET``;
both are found there by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from streamconv.dtypes import DType
from streamconv.errors import DamagedError, UsageError
from streamconv.families.base import ModelFamily, ModelSizes, QkvLayout, Section
from streamconv.files.pickle_machine import Global
from streamconv.lazy import LazyTensor
from streamconv.parallel import ParallelLayout

__all__ = [
    "Dropped",
    "Fact",
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
    """What the user says of a source that does not say it itself, or says it wrongly."""

    tag: str | None = None
    pp_layers: tuple[int, ...] | None = None
    qkv_layout: QkvLayout | None = None
    num_heads: int | None = None
    iteration: int | None = None

    @classmethod
    def said(
        cls,
        tag: str | None = None,
        pp_layers: tuple[int, ...] | None = None,
        qkv_layout: str | None = None,
        num_heads: int | None = None,
        iteration: int | None = None,
    ) -> SourceOptions:
        """What the user says, in the user's words.

        Raises:
            UsageError: a word is not known, or a number is too small.
        """
        names = [layout.value for layout in QkvLayout]
        if qkv_layout not in (None, *names):
            raise UsageError(f"--qkv-layout {qkv_layout}: no such choice", remedy=f"choose one of {', '.join(names)}")
        for flag, number, least in (("--num-heads", num_heads, 1), ("--iteration", iteration, 0)):
            if number is not None and number < least:
                raise UsageError(f"{flag} {number}: must be at least {least}")
        return cls(tag, pp_layers, QkvLayout(qkv_layout) if qkv_layout else None, num_heads, iteration)


@dataclass(slots=True)
class ShardedModel:
    """A model as it is stored: ``tensors[place][rank]`` is the shard of tensor-parallel rank ``rank``.

    ``stages`` is the number of layers on each pipeline stage, None where nothing says so. ``args`` are the training
    arguments as plain attributes, None where the folder has none. ``copies`` are tensors that are stored once more
    (a tied head on the last stage): name, the copy, what it must equal. ``named`` is what the pickle of each file that
    was opened names, and how often it called it.
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
    facts: list[Fact] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    copies: list[tuple[str, LazyTensor, LazyTensor]] = field(default_factory=list)
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


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """A framework's checkpoints as a source. ``open`` raises what :mod:`streamconv.errors` says, never returns less.

    ``claims`` says what makes a folder this framework's, in words; None if nothing does.
    """

    name: str
    open: Callable[[Path, SourceOptions], ShardedModel]
    claims: Callable[[Path], str | None]


@dataclass(frozen=True, slots=True)
class TargetModel:
    """A model that is to be laid out, and what the user wants of the result.

    ``sizes`` has the target's padded vocabulary; ``args`` are the source's training arguments; ``dtype`` is what
    floating tensors are cast to, None if they stay.
    """

    family: ModelFamily
    sizes: ModelSizes
    layout: ParallelLayout
    has_head: bool
    args: Mapping[str, Any] | None
    iteration: int
    dtype: DType | None
    dialect: str
    for_release: bool
    keep_args: bool


class Slot(NamedTuple):
    """A tensor's place in a file that is to be laid out: its section, global layer (or -1) and key in the section."""

    section: Section
    layer: int
    key: str


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A torch file of the result: path below the destination, name inside the zip, a tree with :class:`Slot` leaves.

    ``rank`` is the tensor-parallel rank and ``stage`` the pipeline stage whose shards it holds; ``model`` is the entry
    of the tree that is the model's state dict.
    """

    path: str
    archive: str
    rank: int
    stage: int
    tree: Any
    model: str


@dataclass(frozen=True, slots=True)
class TargetFiles:
    """All files of a result: torch files, small texts (the commit record), and what a user should know of them."""

    files: tuple[TargetFile, ...]
    texts: Mapping[str, str]
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TargetFormat:
    """A framework's checkpoints as a target; the first of ``dialects`` is the default."""

    name: str
    dialects: tuple[str, ...]
    lay_out: Callable[[TargetModel], TargetFiles]
