"""Labelled models of every family that can go to Megatron-Core, and conversions of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv import ConversionReport, convert
from streamconv.models.registry import known_families
from streamconv.planning.capabilities import capability_table
from tests.making.cuts import Cut
from tests.making.families import Case, Stored, case_of, config_of, sizes_of
from tests.making.hugging_face import load_hugging_face
from tests.making.labelled import HEAD, assert_same

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


def to_torch(source: Path, root: Path, cut: Cut, **how: Any) -> Path:
    """A conversion to Megatron-Core's files for each rank."""
    convert(source, root, container="torch", tp=cut.tp, pp_layers=cut.stages, vpp=cut.vpp, **{**CORE, **how})
    return root


def check_hugging_face(source: Path, place: Path, case: Case, **how: Any) -> ConversionReport:
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
