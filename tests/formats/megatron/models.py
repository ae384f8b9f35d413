"""Labelled models of every family that can go to Megatron-Core, and folders of transformers that hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from streamconv import convert
from streamconv.execution.run import Report
from streamconv.models.config.settings import Size
from streamconv.models.family import ModelFamily
from streamconv.models.orders import QkvLayout
from streamconv.models.registry import known_families
from streamconv.planning.capabilities import capability_table
from tests.formats.megatron.rank_files import (
    HEAD,
    Cut,
    Labelled,
    Sizes,
    assert_same,
    hugging_face_tensors,
    labelled,
    load_hugging_face,
    save_hugging_face,
)

__all__ = [
    "CASES",
    "CORE",
    "MULTIPLE",
    "Case",
    "Stored",
    "case_of",
    "check_hugging_face",
    "config_of",
    "sizes_of",
    "to_torch",
]

# The vocabulary of 50 is padded to a multiple of this and of TP, not of Megatron's default of 128.
MULTIPLE: Mapping[str, Any] = {"make_vocab_size_divisible_by": 4}
CORE: dict[str, Any] = {"to": "megatron-core", "max_ram": "1G", "io": "pread", "jobs": 1}


@dataclass(frozen=True)
class Case:
    """A family with a head of its own, or tied to the embedding; ``sizes`` are those of its kind if it has none."""

    family: ModelFamily
    head: bool
    sizes: Sizes | None = None

    def __str__(self) -> str:
        return f"{self.family.name}-{'untied' if self.head else 'tied'}"

    def model(self) -> Labelled:
        """Its labelled model."""
        return labelled(self.family.parameters, self.sizes or sizes_of(self.family), head=self.head)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same as transformers stores it."""
        table = self.family.huggingface
        return hugging_face_tensors(self.model(), table.tensors, blocks=table.qkv is QkvLayout.BLOCKS)

    def save(self, folder: Path, **config: Any) -> None:
        """A new folder of it."""
        save_hugging_face(folder, self.tensors(), {**config_of(self.family, self.model()), **config})


Stored = Callable[[Case], Path]
"""Gives a case's folder."""


def sizes_of(family: ModelFamily) -> Sizes:
    """Two key and value heads for four queries, heads of another width than the hidden size has for each, and an MLP
    of no round size: as far as the family's configuration can say it.
    """
    settable = {setting.size for setting in family.huggingface.settings if isinstance(setting, Size)}
    return Sizes(
        groups=2 if family.grouped else 4,
        head_dim=8 if "head_dim" in settable else 4,
        ffn=24 if "ffn" in settable else 64,
        gated=family.gated,
    )


def config_of(family: ModelFamily, model: Labelled) -> dict[str, Any]:
    """A ``config.json`` that says the sizes, and leaves the rest to transformers' defaults."""
    table = family.huggingface
    sizes = {s.entry: getattr(model.sizes, s.size) for s in table.settings if isinstance(s, Size)}
    own = {"model_type": table.model_type, "architectures": [table.architecture]}
    return {**own, **sizes, "vocab_size": model.sizes.vocab, "tie_word_embeddings": not model.has_head}


def case_of(name: str, *, head: bool = False, **sizes: Any) -> Case:
    """A family by its name, with sizes of its kind but for those that are said."""
    family = next(family for family in known_families() if family.name == name)
    return Case(family, head, replace(sizes_of(family), **sizes))


def to_torch(source: Path, root: Path, cut: Cut, **how: Any) -> Path:
    """A conversion to Megatron-Core's files for each rank."""
    convert(source, root, container="torch", tp=cut.tp, pp_layers=cut.stages, vpp=cut.vpp, **{**CORE, **how})
    return root


def check_hugging_face(source: Path, place: Path, case: Case, **how: Any) -> Report:
    """What a source of 50 tokens holds: converted for transformers, each element is that of the case's model."""
    report = convert(source, place, **{**CORE, "to": "huggingface", "vocab_size": 50, **how})
    assert_same(load_hugging_face(place), case.tensors(), case.model(), str(source))
    return report


def _cases() -> list[Case]:
    can = {
        cell.family.name
        for cell in capability_table()
        if (cell.source.name, cell.target.name) == ("huggingface", "megatron-core") and cell.refusal is None
    }
    return [
        Case(family, head)
        for family in known_families()
        if family.name in can
        for head in ([False, True] if any(p.key == HEAD for p in family.parameters) else [False])
    ]


CASES = _cases()
