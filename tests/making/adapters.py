"""Labelled adapters of PEFT: what they add is another whole number for every element, so no sum is ever rounded but
the last one.

Names are those of ``peft/utils/save_and_load.py:get_peft_model_state_dict``, and of a live model those of
``peft/tuners/lora/layer.py`` and ``peft/utils/other.py:ModulesToSaveWrapper``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
BEFORE = "base_model.model."


@dataclass(frozen=True)
class Thin:
    """``B`` (rows, rank) and ``A`` (rank, columns)."""

    b: torch.Tensor
    a: torch.Tensor

    @property
    def product(self) -> torch.Tensor:
        return self.b.float() @ self.a.float()

    def to(self, dtype: torch.dtype) -> Thin:
        return Thin(self.b.to(dtype), self.a.to(dtype))


def thin(rows: int, columns: int, rank: int = 2) -> Thin:
    """Element (i, j) of the product is ``columns * i + j + 1``, less what each rank above 2 takes off: i + j + 1."""
    i, j = torch.arange(rows, dtype=torch.float32)[:, None], torch.arange(columns, dtype=torch.float32)[None]
    b = [i, torch.ones(rows, 1)]
    a = [torch.full((1, columns), float(columns)), j + 1]
    for number in range(rank - 2):
        b.append(torch.full((rows, 1), -1.0) if number % 2 else -i)
        a.append(j + 1 if number % 2 else torch.ones(1, columns))
    return Thin(torch.cat(b, 1), torch.cat(a, 0))


def uneven(*shape: int, start: float = 0.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Fractions that all differ, so that the last bits of a sum with a whole number are rounded."""
    return ((torch.arange(torch.Size(shape).numel()) + start) / 7).reshape(shape).to(dtype)


def entries(**changes: Any) -> dict[str, Any]:
    """An ``adapter_config.json``."""
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "fan_in_fan_out": False, "bias": "none", "use_dora": False}
    return {**usual, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "use_rslora": False, **changes}


def in_file(pairs: dict[str, Thin], others: Tensors | None = None) -> Tensors:
    """An adapter by the names of its own file; ``others`` are whole tensors."""
    found = {f"{BEFORE}{module}.lora_A.weight": pair.a for module, pair in pairs.items()}
    found |= {f"{BEFORE}{module}.lora_B.weight": pair.b for module, pair in pairs.items()}
    return found | {f"{BEFORE}{name}": tensor for name, tensor in (others or {}).items()}


def write_adapter(folder: Path, tensors: Tensors, name: str = "adapter_model.safetensors", **changes: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(entries(**changes)))
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file({each: tensor.contiguous() for each, tensor in tensors.items()}, folder / name)
    return folder


def write_base(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of", **config}))
    return folder
