"""Check a DeepSpeed folder for files that are missing, and for files that belong to none of its ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamconv.core.errors import DamagedError
from streamconv.formats.common.faults import COPY_AGAIN, Faults, listed
from streamconv.formats.deepspeed.names import FolderNames, expert_file, layer_file, rank_file

__all__ = ["RecordedSizes", "check_experts", "check_grid", "check_partitions"]

_PARTITION = re.compile(r"(.*zero_pp_rank_)[0-9]+_mp_rank_[0-9]+_(.+)")


@dataclass(frozen=True, slots=True)
class RecordedSizes:
    """The tensor-parallel, pipeline-parallel and data-parallel sizes that rank files record, None where they do not.

    A size that is not recorded is taken from the file names.
    """

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None

    def tp_of(self, names: FolderNames) -> int | None:
        """Tensor-parallel size, None if it is not recorded and there are no layer files."""
        return self.tp or names.tp

    def model_ranks_of(self, names: FolderNames) -> int:
        """TP x PP."""
        tp = self.tp_of(names)
        return tp * self.pp if tp and self.pp else names.model_ranks


def check_grid(folder: Path, names: FolderNames, sizes: RecordedSizes, faults: Faults) -> None:
    """Check that each layer has a file for each tensor-parallel rank, each model-parallel rank its own, and no more.

    Args:
        folder: for messages.
        names: the files there.
        sizes: what is recorded.
        faults: raises or collects the faults.

    Raises:
        DamagedError: ``faults`` is strict, and files are missing, beyond the grid, or there twice.
    """
    for first, second in names.twins:
        same = "the same layer and rank" if first in names.layers.values() else "the same rank"
        words = f"{first} and {second} are {same}"
        faults.note(DamagedError(words, where=folder, remedy="remove the one that is not the checkpoint's own"))
    tp, model_ranks = sizes.tp_of(names), sizes.model_ranks_of(names)
    beyond = [name for (_, rank), name in names.layers.items() if tp is not None and rank >= tp]
    beyond += [name for rank, name in names.ranks.items() if rank >= model_ranks]
    _note_beyond(folder, beyond, tp, model_ranks, faults)
    if names.layers and tp:
        indices = names.layer_indices
        grid = ((index, rank) for index in indices for rank in range(tp))
        lost = (layer_file(*place) for place in grid if place not in names.layers)
        there = sum(rank < tp for _, rank in names.layers)
        _note_missing(folder, "layer files", lost, len(indices) * tp - there, len(indices) * tp, faults)
    if names.ranks:
        _check_ranks(folder, names, model_ranks, faults)


def _check_ranks(folder: Path, names: FolderNames, model_ranks: int, faults: Faults) -> None:
    lost = (rank_file(rank) for rank in range(model_ranks) if rank not in names.ranks)
    there = sum(rank < model_ranks for rank in names.ranks)
    _note_missing(folder, "mp_rank files", lost, model_ranks - there, model_ranks, faults)


def check_experts(folder: Path, names: FolderNames, recorded: Mapping[int, Sequence[int]], faults: Faults) -> None:
    """Check that each expert that a rank file counts has its file.

    Args:
        folder: for messages.
        names: the files there.
        recorded: for each model-parallel rank the number of experts in each of its layers of experts.
        faults: raises or collects the faults.

    Raises:
        DamagedError: ``faults`` is strict, and files are missing.
    """
    per_layer = [(layer, rank, count) for rank, counts in recorded.items() for layer, count in enumerate(counts)]
    total = sum(count for _, _, count in per_layer)
    there = sum(
        expert < recorded[rank][layer] for layer, expert, rank in names.experts if layer < len(recorded.get(rank, ()))
    )
    lost = (
        expert_file(layer, expert, rank)
        for layer, rank, count in per_layer
        for expert in range(count)
        if (layer, expert, rank) not in names.experts
    )
    _note_missing(folder, "files of experts", lost, total - there, total, faults)


def check_partitions(folder: Path, names: FolderNames, sizes: RecordedSizes, faults: Faults) -> None:
    """Check ZeRO's files: one for each data-parallel rank of each model-parallel rank, with the rank files beside them.

    A conversion reads parameters without these files, so it does not check them.

    Raises:
        DamagedError: ``faults`` is strict, and files are missing or beyond the grid.
    """
    tp, model_ranks = sizes.tp_of(names), sizes.model_ranks_of(names)
    beyond = [name for (_, rank), name in (*names.optimizer.items(), *names.zero3.items()) if rank >= model_ranks]
    _note_beyond(folder, beyond, tp, model_ranks, faults)
    if names.optimizer and not names.ranks and not names.zero3:
        _check_ranks(folder, names, model_ranks, faults)
    if names.zero3 and not names.optimizer:
        words = "there is no optimizer file, and with ZeRO stage 3 these hold the parameters"
        faults.note(DamagedError(words, where=folder, remedy=COPY_AGAIN))
    # More partitions than data-parallel ranks are no fault: sequence parallelism makes them.
    dp = max(names.dp or 1, sizes.dp or 1)
    for what, files in (("optimizer files", names.optimizer), ("ZeRO-3 model files", names.zero3)):
        if files:
            there = sum(rank < model_ranks for _, rank in files)
            of = dp * model_ranks
            _note_missing(folder, what, _lost_partitions(files, model_ranks, dp), of - there, of, faults)


def _lost_partitions(files: Mapping[tuple[int, int], str], model_ranks: int, dp: int) -> Iterator[str]:
    """The names of missing files in the grid of data-parallel and model-parallel ranks, formed like an existing one."""
    match = _PARTITION.fullmatch(next(iter(files.values())))
    head, tail = (match[1], match[2]) if match else ("", "")
    grid = ((data, rank) for data in range(dp) for rank in range(model_ranks))
    return (f"{head}{d}_mp_rank_{r:02d}_{tail}" for d, r in grid if (d, r) not in files)


def _note_beyond(folder: Path, names: Iterable[str], tp: int | None, model_ranks: int, faults: Faults) -> None:
    ordered = sorted(names)
    if ordered:
        sizes = f"TP {tp} x PP {model_ranks // tp}" if tp else f"{model_ranks} model-parallel ranks"
        words = f"beyond the ranks of a model of {sizes}: {listed(ordered, len(ordered))}"
        remedy = "move them out of the folder, or say which checkpoint they are of"
        faults.note(DamagedError(words, where=folder, remedy=remedy))


def _note_missing(folder: Path, what: str, lost: Iterator[str], missing: int, of: int, faults: Faults) -> None:
    """Note the missing files. A damaged record may claim a grid of any size, so ``lost`` is not listed in full."""
    if missing:
        words = f"{missing} of {of} {what} are missing: {listed(lost, missing)}"
        faults.note(DamagedError(words, where=folder, remedy=COPY_AGAIN))
