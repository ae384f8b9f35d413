"""DeepSpeed's names of a checkpoint's files, and the ranks that the names of a folder show.

- ``layer_03-model_01-model_states.pt``: a layer of the pipeline and a tensor-parallel rank; without a model axis the
  rank is left out [``deepspeed/runtime/pipe/module.py:ckpt_layer_path``].
- ``mp_rank_01_model_states.pt``: a model-parallel rank [``deepspeed/runtime/engine.py:_get_ckpt_name``], under the
  pipeline engine stage x TP + tensor-parallel rank.
- ``zero_pp_rank_0_mp_rank_01_optim_states.pt``: a data-parallel and a model-parallel rank, with ``bf16_`` before it if
  the BF16 optimizer wrote it [``_get_zero_ckpt_name``]; ``.._model_states.pt`` with ZeRO stage 3. Up to DeepSpeed
  0.3.13 the second rank was followed by ``optim_states.pt`` without an underscore.
- ``layer_0_expert_3_mp_rank_01_model_states.pt``: an expert by its global number in the rank's first layer of experts;
  early releases left the layer out [``_get_expert_ckpt_name``].
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "LATEST",
    "OWNED",
    "FileKind",
    "FileName",
    "FolderNames",
    "expert_file",
    "is_optimizer_file",
    "layer_file",
    "parse_name",
    "parse_names",
    "rank_file",
    "step_folder",
]

LATEST = "latest"
"""The file of a root that names the checkpoint to load [``deepspeed/runtime/engine.py:save_checkpoint``]."""
OWNED = ("global_step*", LATEST)
"""Patterns (:mod:`fnmatch`) of the names in a root of such checkpoints."""


class FileKind(Enum):
    """The content of a file, by its name."""

    LAYER = "layer"
    RANK = "rank"
    OPTIMIZER = "optimizer"
    ZERO3 = "zero3"


# Longer numbers, which a name of 255 bytes may have, are no ranks and exceed an index of Python.
_N = "([0-9]{1,18})"
_PATTERNS = {
    FileKind.LAYER: re.compile(rf"(layer_){_N}(?:-model_{_N})?-model_states\.pt"),
    FileKind.RANK: re.compile(rf"(mp_rank_){_N}()_model_states\.pt"),
    FileKind.OPTIMIZER: re.compile(rf"((?:bf16_|fp16_)?zero_pp_rank_){_N}_mp_rank_{_N}_?optim_states\.pt"),
    FileKind.ZERO3: re.compile(rf"(zero_pp_rank_){_N}_mp_rank_{_N}_model_states\.pt"),
}
_EXPERT = re.compile(rf"(?:layer_{_N}_)?expert_{_N}_mp_rank_{_N}_model_states\.pt")


@dataclass(frozen=True, slots=True)
class FileName:
    """A parsed file name: the kind, the text before the first number, and the numbers.

    ``first`` is the layer, the model-parallel rank of a rank file, or the data-parallel rank; ``second`` is the
    tensor-parallel rank of a layer file, or the model-parallel rank of one of ZeRO's.
    """

    kind: FileKind
    prefix: str
    first: int
    second: int


def parse_name(name: str) -> FileName | None:
    """The parsed name of a file, None if it is none of DeepSpeed's."""
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(name):
            return FileName(kind, match[1], int(match[2]), int(match[3] or 0))
    return None


def is_optimizer_file(name: str) -> bool:
    """Whether a name is that of optimizer state: ZeRO's, or that of experts, whose names differ."""
    return name.endswith("optim_states.pt")


def step_folder(iteration: int | None) -> str:
    """The name of a checkpoint's folder, in Megatron-DeepSpeed and GPT-NeoX; 0 stands for no iteration."""
    return f"global_step{iteration or 0}"


def layer_file(layer: int, rank: int) -> str:
    """The name of a layer's file."""
    return f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"


def expert_file(layer: int, expert: int, rank: int) -> str:
    """The name of an expert's file."""
    return f"layer_{layer}_expert_{expert}_mp_rank_{rank:02d}_model_states.pt"


def rank_file(rank: int) -> str:
    """The name of a model-parallel rank's file."""
    return f"mp_rank_{rank:02d}_model_states.pt"


@dataclass(frozen=True, slots=True)
class FolderNames:
    """A folder's files, sorted by their names.

    ``layers`` is by (layer, tensor-parallel rank), ``ranks`` by model-parallel rank, ``optimizer`` and ``zero3``
    (ZeRO-3 model files) by (data-parallel rank, model-parallel rank), ``experts`` by (layer of experts, expert,
    model-parallel rank), with layer 0 if the name has none. ``others`` are the rest. ``twins`` are pairs of names that
    mean the same; the first is used.
    """

    layers: dict[tuple[int, int], str]
    ranks: dict[int, str]
    optimizer: dict[tuple[int, int], str]
    zero3: dict[tuple[int, int], str]
    experts: dict[tuple[int, int, int], str]
    others: tuple[str, ...]
    twins: tuple[tuple[str, str], ...]

    @property
    def tp(self) -> int | None:
        """Tensor-parallel size, if there are layer files."""
        return 1 + max(rank for _, rank in self.layers) if self.layers else None

    @property
    def layer_indices(self) -> list[int]:
        """The numbers of the layers that have files."""
        return sorted({index for index, _ in self.layers})

    @property
    def model_ranks(self) -> int:
        """TP x PP under the pipeline engine, TP without it: the model-parallel ranks that any file names."""
        named = [*self.ranks, *(rank for _, rank in (*self.optimizer, *self.zero3))]
        return 1 + max(named, default=-1)

    @property
    def dp(self) -> int | None:
        """Data-parallel size, if there are optimizer or ZeRO-3 files."""
        named = [data for data, _ in (*self.optimizer, *self.zero3)]
        return 1 + max(named) if named else None

    @property
    def model_files(self) -> list[str]:
        """All files of parameters, and the rank files."""
        return sorted([*self.layers.values(), *self.ranks.values(), *self.zero3.values()])


def parse_names(names: Iterable[str]) -> FolderNames:
    """The files of a folder, sorted by their names."""
    places: dict[FileKind, dict[tuple[int, int], str]] = {kind: {} for kind in FileKind}
    experts: dict[tuple[int, int, int], str] = {}
    others, twins = [], []
    for name in sorted(names):
        if match := _EXPERT.fullmatch(name):
            place = int(match[1] or 0), int(match[2]), int(match[3])
            if experts.setdefault(place, name) != name:
                twins.append((experts[place], name))
            continue
        parsed = parse_name(name)
        if parsed is None:
            others.append(name)
            continue
        first = places[parsed.kind].setdefault((parsed.first, parsed.second), name)
        if first != name:
            twins.append((first, name))
    layers, ranks, optimizer, zero3 = places.values()
    by_rank = {rank: name for (rank, _), name in ranks.items()}
    return FolderNames(layers, by_rank, optimizer, zero3, experts, tuple(others), tuple(twins))
