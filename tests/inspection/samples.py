"""Checkpoints to inspect: copies of the fixtures, and what is done to them."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from streamconv import inspect
from streamconv.inspection.report import InspectionReport
from tests.places import FRAMEWORKS

GPT = FRAMEWORKS / "bs_gpt2_tp2pp2_fp16_z1"
BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
LLAMA = FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0"


class Attack:
    """Whoever unpickles this touches a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def copied(source: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint's root."""
    return Path(shutil.copytree(source, tmp_path / source.name))


def step_of(root: Path) -> Path:
    """The folder with the files, as ``latest`` names it."""
    return root / (root / "latest").read_text().strip()


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 5])


def pickled(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value))


def changed(path: Path, **tensors: torch.Tensor) -> None:
    """Replace tensors of a layer file; dots in names are written as two underscores."""
    state = torch.load(path, weights_only=True)
    for name, tensor in tensors.items():
        key = name.replace("__", ".")
        assert state[key].shape == tensor.shape
        state[key] = tensor
    torch.save(state, path)


def look(path: Path, **options: Any) -> InspectionReport:
    reads_values = any(options.get(name) for name in ("stats", "check"))
    budget: dict[str, Any] = {"max_ram": "2G"} if reads_values else {}
    return inspect(path, **{**budget, **options})


def words_of(report: InspectionReport) -> str:
    """All findings as one text."""
    return "\n".join(f"{f.severity} {f.what} {f.where}" for f in report.findings)
