"""A folder as DeepSpeed's inspection tools see it: its files by kind, and its parallel degrees.

From names and metadata alone, by the rules of ``deepspeed/checkpoint/reshape_utils.py``, ``reshape_3d_utils.py`` and
``deepspeed_checkpoint.py``. Two things differ. Files are in the order of their numbers, so rank 100 follows rank 99. A
folder without ZeRO files, or without some of them, is opened and gets a note.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, SourceError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import COPY_AGAIN
from streamconv.formats.deepspeed.names import FileKind, FileName, parse_name

__all__ = ["Degrees", "RankedFolder", "layer_shapes", "open_folder"]

_ZERO_PREFIXES = ("zero_pp_rank_", "fp16_zero_pp_rank_", "bf16_zero_pp_rank_")
_DIMENSIONS = "checkpoint_parallel_dimensions"


@dataclass(frozen=True, slots=True)
class Degrees:
    """Sizes of the three parallel axes."""

    tp: int
    pp: int
    dp: int


@dataclass(frozen=True, slots=True)
class RankedFolder:
    """The files of a folder and their degrees.

    Attributes:
        files: all files at any depth; ``zero``, ``layers`` and ``ranks`` (the ``mp_rank_*`` files) are some of them.
        keys: ``layer_01`` and so on, in the order of the model.
        degrees: of the ranks that wrote them.
        args: the training arguments of the first rank.
    """

    files: list[str]
    zero: list[str]
    layers: list[str]
    ranks: list[str]
    keys: list[str]
    degrees: Degrees
    args: Any

    @property
    def home(self) -> Path:
        """The folder of the checkpoint's own files."""
        return Path(self.ranks[0]).parent

    def files_of(self, key: str) -> list[str]:
        """A layer's files by tensor-parallel rank."""
        return [file for file in self.layers if Path(file).name.startswith(f"{key}-")]

    def notes(self) -> list[str]:
        """Remarks for the user on the ZeRO files."""
        tp, pp = self.degrees.tp, self.degrees.pp
        if not self.zero:
            return ["no ZeRO files: nothing in the names tells the DP degree, and 1 is printed"]
        if len(self.zero) % (tp * pp):
            return [f"ZeRO files: {len(self.zero)}, no multiple of TP {tp} x PP {pp}; some are missing"]
        return []


def open_folder(folder: str) -> RankedFolder:
    """List a folder and find its degrees. The paths begin with ``folder`` as the caller spelled it.

    Raises:
        SourceError: it is not there, holds no ``mp_rank_*`` file, or holds more than one checkpoint.
        DamagedError: files are missing or contradict each other.
    """
    if not Path(folder).is_dir():
        raise SourceError("no such folder", where=folder)
    # os.path.join keeps the folder's spelling, which pathlib would normalise.
    paths = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]  # noqa: PTH118
    files = sorted(paths, key=_numbered)
    parsed = {file: name for file in files if (name := parse_name(Path(file).name))}
    layers = [file for file, name in parsed.items() if name.kind is FileKind.LAYER]
    ranks = [file for file, name in parsed.items() if name.kind is FileKind.RANK]
    _check_folder(folder, layers, ranks)
    recorded, args = [], None
    for number, file in enumerate(ranks):
        state = _state(file)
        recorded.append(_recorded(state))
        args = state.get("args") if number == 0 else args
    zero = _zero_files(parsed)
    counted = _counted(folder, layers)
    tp, pp = _degrees(folder, len(ranks), recorded, next(iter(counted.values()), 0))
    for key, count in counted.items():
        if count != tp:
            raise DamagedError(f"{key} has {count} files, TP is {tp}", where=folder, remedy=COPY_AGAIN)
    return RankedFolder(
        files, zero, layers, ranks, list(counted), Degrees(tp, pp, max(1, len(zero) // (tp * pp))), args
    )


def layer_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a layer file, by parameter."""
    return {str(key): value.shape for key, value in _state(path).items() if isinstance(value, LazyTensor)}


def _numbered(path: str) -> tuple[str, list[Any]]:
    folder, name = os.path.split(path)
    return folder, [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", name))]


def _check_folder(folder: str, layers: Sequence[str], ranks: Sequence[str]) -> None:
    if not ranks:
        raise SourceError("no mp_rank_* file, so not a whole checkpoint of DeepSpeed's engine", where=folder)
    homes = sorted({str(Path(file).parent) for file in (*layers, *ranks)})
    if len(homes) > 1:
        raise SourceError(
            f"{len(homes)} folders with checkpoint files", where=folder, remedy=f"name one: {', '.join(homes)}"
        )


def _state(path: str) -> Mapping[Any, Any]:
    state = open_torch(Path(path)).state
    if not isinstance(state, dict):
        raise DamagedError(f"a {type(state).__name__} where a dictionary is due", where=path)
    return state


def _counted(folder: str, layers: Sequence[str]) -> dict[str, int]:
    """The number of files of each layer, in the order of the model."""
    counts: dict[str, int] = {}
    for file in layers:
        key = Path(file).name.partition("-")[0]
        counts[key] = counts.get(key, 0) + 1
    numbers = sorted(counts, key=lambda key: int(key.removeprefix("layer_")))
    if len({int(key.removeprefix("layer_")) for key in numbers}) != len(numbers):
        raise DamagedError("two spellings of one layer's number", where=folder)
    return {key: counts[key] for key in numbers}


def _zero_files(parsed: Mapping[str, FileName]) -> list[str]:
    """The ZeRO files of the first kind found, sorted by data-parallel and then by model-parallel rank."""
    for prefix in _ZERO_PREFIXES:
        ranked = sorted((name.first, name.second, file) for file, name in parsed.items() if name.prefix == prefix)
        if ranked:
            return [file for _, _, file in ranked]
    return []


def _recorded(state: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    """(TP, PP) as DeepSpeed since 2026-08 records them."""
    sizes = state.get(_DIMENSIONS)
    return (sizes.get("tp_degree"), sizes.get("pp_degree")) if isinstance(sizes, dict) else None


def _degrees(folder: str, ranks: int, recorded: Sequence[tuple[Any, Any] | None], first_layer: int) -> tuple[int, int]:
    """(TP, PP) as recorded, or else as counted: TP is then the number of files of the first layer."""
    if any(sizes != recorded[0] for sizes in recorded):
        raise DamagedError(f"{_DIMENSIONS} differ between the mp_rank files", where=folder)
    tp, pp = recorded[0] or (first_layer or ranks, ranks // (first_layer or ranks))
    if not all(type(size) is int and size > 0 for size in (tp, pp)) or tp * pp != ranks:
        words = f"TP {tp} x PP {pp}" if pp else f"TP {tp}"
        raise DamagedError(f"{ranks} mp_rank files, but {words}", where=folder, remedy=COPY_AGAIN)
    return tp, pp
