"""The three classes of DeepSpeed that its ZeRO files name, as stand-ins that pickle under the real names.

So a folder can be written where deepspeed is not installed, and without the seconds that importing it takes.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


class LossScaler:
    """``deepspeed.runtime.fp16.loss_scaler``: a scale that stays."""

    def __init__(self, scale: float) -> None:
        self.cur_scale = scale
        self.dynamic = False


class ZeroStageEnum(int, enum.Enum):
    """``deepspeed.runtime.zero.config``: 1, 2 and 3."""

    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3


@dataclass
class fragment_address:  # noqa: N801
    """``deepspeed.utils.tensor_fragment``: a parameter's part of one partition, from the partition's ``start``."""

    numel: int
    start: int


HOMES: dict[str, type[Any]] = {
    "deepspeed.runtime.fp16.loss_scaler": LossScaler,
    "deepspeed.runtime.zero.config": ZeroStageEnum,
    "deepspeed.utils.tensor_fragment": fragment_address,
}
for _home, _kind in HOMES.items():
    _kind.__module__ = _home


@contextmanager
def _importable() -> Iterator[None]:
    """The modules in ``HOMES`` and their parents stand where pickle looks for them; what was there comes back."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "deepspeed"}
    for name in before:
        del sys.modules[name]
    try:
        for home, kind in HOMES.items():
            words = home.split(".")
            for count in range(1, len(words) + 1):
                sys.modules.setdefault(".".join(words[:count]), ModuleType(".".join(words[:count])))
            setattr(sys.modules[home], kind.__name__, kind)
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
            del sys.modules[name]
        sys.modules.update(before)


def save(state: Any, path: Path) -> None:
    """``torch.save``, the stand-ins under the names of the real classes."""
    with _importable():
        torch.save(state, path)


def load(path: Path) -> Any:
    """``torch.load`` of such a file, or of a real one, without deepspeed."""
    with _importable():
        return torch.load(path, map_location="cpu", weights_only=False)
