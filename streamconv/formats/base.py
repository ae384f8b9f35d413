"""What a format says of a checkpoint that it has opened: shards by their place in the model, and the facts around
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamconv.families.base import QkvLayout, Section
from streamconv.lazy import LazyTensor

__all__ = ["Dropped", "Fact", "Place", "ShardedModel", "SourceOptions"]

Place = tuple[Section, int, str]
"""(section, layer from 0 or -1, key in the section)."""


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


@dataclass(slots=True)
class ShardedModel:
    """A model as it is stored: ``tensors[place][rank]`` is the shard of tensor-parallel rank ``rank``.

    ``stages`` is the number of layers on each pipeline stage, None where nothing says so. ``args`` are the training
    arguments as plain attributes, None where the folder has none.
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
