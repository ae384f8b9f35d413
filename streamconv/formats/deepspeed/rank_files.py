"""The ``mp_rank_*`` files of a DeepSpeed checkpoint: what they say of the run, and what stays behind in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.reader import Record, leaves_of
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.recorded import whole
from streamconv.formats.source import Dropped

__all__ = ["RankFiles", "left_behind", "open_ranks", "recorded_shapes", "recorded_sizes", "refuse_second_module"]

_MP_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r".*_optim_states\.pt")
_SAME_ARGS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "tensor_model_parallel_size",
)


@dataclass(frozen=True, slots=True)
class RankFiles:
    """The ``mp_rank_*`` files by rank; the first one's plain entries are the checkpoint's."""

    files: tuple[StoredFile, ...]

    @property
    def state(self) -> Mapping[str, Any]:
        """The first rank's entries."""
        return self.files[0].state if self.files else {}

    @property
    def args(self) -> Mapping[str, Any] | None:
        """The training arguments, if there are any."""
        found = self.state.get("args")
        return found.attributes if isinstance(found, Record) else None

    def recorded(self, key: str) -> int | None:
        """TP or PP as DeepSpeed since 2026-08 records it, ``checkpoint_parallel_dimensions``."""
        sizes = self.state.get("checkpoint_parallel_dimensions")
        return whole(sizes.get(key)) if isinstance(sizes, dict) else None


def open_ranks(folder: Path, names: list[str]) -> RankFiles:
    """Open the rank files among ``names``; there may be none.

    Raises:
        DamagedError: a rank is missing or there twice, or the files are of different runs.
        UnsupportedError: their checkpoint_version is below 2.
    """
    found = [(int(match[1]), name) for name in names if (match := _MP_RANK.fullmatch(name))]
    by_rank = dict(found)
    if len(by_rank) != len(found):
        raise DamagedError(
            "two mp_rank files have the same rank", where=folder, remedy="remove the one that is not its own"
        )
    if by_rank and max(by_rank) >= len(by_rank):
        first = next(rank for rank in range(len(by_rank)) if rank not in by_rank)
        raise DamagedError(
            f"{len(by_rank)} mp_rank files of {max(by_rank) + 1}: the first missing is rank {first}",
            where=folder,
            remedy="copy the missing files from the training run's storage",
        )
    files = tuple(open_torch(folder / by_rank[rank]) for rank in sorted(by_rank))
    for file in files:
        if not isinstance(file.state, dict):
            raise DamagedError("an mp_rank file that is not a dictionary", where=file.path)
    ranks = RankFiles(files)
    _check_same_run(ranks)
    return ranks


def _story(state: Mapping[str, Any]) -> list[int | None]:
    args = state.get("args")
    attributes = args.attributes if isinstance(args, Record) else {}
    values = [state.get("iteration"), *(attributes.get(name) for name in _SAME_ARGS)]
    return [whole(value) for value in values]


def _check_same_run(ranks: RankFiles) -> None:
    """All ranks must tell the same story, and one whose rows of query_key_value are known."""
    for file in ranks.files:
        for name, first, mine in zip(("iteration", *_SAME_ARGS), _story(ranks.state), _story(file.state), strict=True):
            if first != mine:
                raise DamagedError(
                    f"{name} is {mine} in {file.path.name}, but {first} in {ranks.files[0].path.name}",
                    where=file.path.parent,
                    remedy="the files are of different runs or steps: keep those of one",
                )
        version = file.state.get("checkpoint_version", 3.0)
        if not isinstance(version, int | float) or not version >= 2:
            raise UnsupportedError(
                f"checkpoint_version {version}: its query_key_value rows are in an order of before 2021",
                where=file.path,
                remedy="load and save it once with a Megatron of checkpoint_version 2.0 or above",
            )


def recorded_shapes(state: Mapping[str, Any]) -> Any:
    """The recorded groups of parameters, frozen ones included, or None."""
    groups, frozen = state.get("param_shapes"), state.get("frozen_param_shapes")
    return [*groups, frozen] if isinstance(groups, list | tuple) and isinstance(frozen, dict) else groups


def recorded_sizes(ranks: RankFiles, recorded: str, argument: str) -> dict[str, int]:
    """A parallel size by where it is recorded, the most trusted first."""
    found = {
        "checkpoint_parallel_dimensions": ranks.recorded(f"{recorded}_degree"),
        f"args.{argument}": (ranks.args or {}).get(argument),
    }
    return {source: size for source, value in found.items() if (size := whole(value)) is not None}


def refuse_second_module(ranks: RankFiles) -> None:
    """Refuse parameters in these files where layer files hold the model.

    Raises:
        UnsupportedError: there are some.
    """
    for file in ranks.files:
        if any(leaves_of(LazyTensor, file.state.get("module"), str(file.path))):
            raise UnsupportedError(
                "there are layer files, and parameters in this file too",
                where=file.path,
                remedy="keep the one that is current",
            )


def left_behind(folder: Path, names: Iterable[str], ranks: RankFiles) -> list[Dropped]:
    """Optimizer files and the tensors in rank files that are no parameters, each with its reason."""
    dropped = []
    optimizer = [name for name in names if _OPTIMIZER.fullmatch(name)]
    if optimizer:
        nbytes = sum((folder / name).stat().st_size for name in optimizer)
        dropped.append(Dropped(f"{len(optimizer)} *_optim_states.pt files", nbytes, "optimizer state: parameters only"))
    groups: dict[str, tuple[int, int]] = {}
    for file in ranks.files:
        for name, tensor in file.tensors().items():
            group = name.split(".", 1)[0]
            if group != "module":
                count, nbytes = groups.get(group, (0, 0))
                groups[group] = (count + 1, nbytes + tensor.nbytes)
    for group, (count, nbytes) in groups.items():
        dropped.append(
            Dropped(f"{count} tensors of {group} in mp_rank files", nbytes, _REASONS.get(group, "not a parameter"))
        )
    return dropped


_REASONS = {
    "optimizer": "optimizer state: parameters only",
    "args": "a tensor among the arguments: not plain data",
    "rng_state": "random number state: parameters only",
    "torch_rng_state": "random number state: parameters only",
    "cuda_rng_state": "random number state: parameters only",
    "rng_tracker_states": "random number state: parameters only",
    "lr_scheduler": "scheduler state: parameters only",
}
