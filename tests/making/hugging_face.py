"""A labelled model as transformers stores it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from tests.making.labelled import QKV, Labelled, part_of


class Stored(Protocol):
    """A tensor in a family's table of transformers' names."""

    @property
    def name(self) -> str: ...
    @property
    def section(self) -> Any: ...
    @property
    def key(self) -> str: ...
    @property
    def part(self) -> str | None: ...
    @property
    def transposed(self) -> bool: ...


def hugging_face_tensors(model: Labelled, table: Iterable[Stored], *, blocks: bool) -> dict[str, torch.Tensor]:
    """The model as transformers stores it; ``blocks`` says that a fused c_attn is all queries, all keys, all values."""
    found: dict[str, torch.Tensor] = {}
    for row in table:
        if row.section.value == "head" and not model.has_head:
            continue
        layers = range(model.sizes.num_layers) if row.section.value == "layer" else (0,)
        for layer in layers:
            name = _names_at(row, layer)
            if row.part is not None:
                tensor = part_of(model, name, row.part)
            elif QKV in name and blocks:
                tensor = torch.cat([part_of(model, name, part) for part in ("query", "key", "value")])
            else:
                tensor = model.tensors[name]
            found[row.name.format(layer=layer)] = (tensor.T if row.transposed else tensor).contiguous().clone()
    return found


def _names_at(row: Stored, layer: int) -> str:
    if row.section.value == "layer":
        return f"layers.{layer}.{row.key}"
    return f"final_layernorm.{row.key}" if row.section.value == "final_norm" else row.key


def save_hugging_face(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """A folder of one file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def load_hugging_face(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder of one file."""
    return load_file(folder / "model.safetensors")
