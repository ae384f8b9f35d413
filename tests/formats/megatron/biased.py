"""Llama and Qwen 3 with biases on linear layers: labelled models, and what Megatron has of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from streamconv.models.biases import BY_ENTRY, in_megatron
from streamconv.planning.plan import Plan
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.models import Case, case_of
from tests.formats.megatron.rank_files import Cut, Labelled

__all__ = [
    "ALL",
    "ATTENTION",
    "BIASED",
    "BOTH",
    "DENSE",
    "MLP",
    "MODELS",
    "QKV",
    "WHOLE",
    "Biased",
    "entries_of",
    "notes_of",
    "said",
    "saved",
]

ALL = frozenset(key for pair in BY_ENTRY.values() for key in pair)
QKV, DENSE = BY_ENTRY["attention_bias"]
WHOLE: dict[str, Any] = {"to": "huggingface", "max_ram": "1G", "vocab_size": 50}


@dataclass(frozen=True)
class Biased:
    """A family, and the entries of its configuration that give it biases."""

    name: str
    entries: tuple[str, ...]

    def __str__(self) -> str:
        return "-".join((self.name, *self.entries))

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(key for entry in self.entries for key in BY_ENTRY[entry])

    @property
    def zeros(self) -> frozenset[str]:
        """What Megatron has beyond it."""
        return in_megatron(self.keys) - self.keys

    def case(self, keys: Iterable[str] | None = None) -> Case:
        base = case_of(self.name, head=True)
        return Case(base.family.having(self.keys if keys is None else set(keys)), base.head)

    def save(self, folder: Path) -> Case:
        case = self.case()
        case.save(folder, **dict.fromkeys(self.entries, True))
        return case

    def in_megatron(self) -> Labelled:
        """The labelled model, with zeros where Megatron has a bias and the model has none."""
        own, wide = self.case().model(), self.case(ALL if self.keys else ()).model()
        zeros = {name: torch.zeros_like(tensor) for name, tensor in wide.tensors.items() if name not in own.tensors}
        return replace(own, tensors={**own.tensors, **zeros})


ATTENTION, MLP, BOTH = ("attention_bias",), ("mlp_bias",), ("attention_bias", "mlp_bias")
MODELS = [Biased("llama", ()), *(Biased("llama", some) for some in (ATTENTION, MLP, BOTH)), Biased("qwen3", ATTENTION)]
BIASED = MODELS[1:]


def entries_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {name: config.get(name) for name in BY_ENTRY}


def said(biased: Biased) -> dict[str, Any]:
    """The entries that a written configuration has."""
    own = BOTH if biased.name == "llama" else ATTENTION
    return {name: name in biased.entries if name in own else None for name in BY_ENTRY}


def notes_of(work: Plan) -> list[str]:
    return [f"{fact.what}: {fact.evidence}" for fact in work.notes if fact.what.startswith("zeros")]


def saved(model: Labelled, root: Path, cut: Cut, **more: Any) -> Path:
    """A training checkpoint of a model, as Megatron-Core saves it."""
    args = files.core_args(model, cut, **more)
    return files.save_ranks(root, cut, files.core_files(model, cut), args=args, checkpoint_version=3.0)
