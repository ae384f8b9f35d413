"""What the file names of a Megatron-DeepSpeed folder say: the grid of ranks, and what is missing in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from streamconv.inspection.report import Finding

__all__ = ["DeepSpeedNames", "RecordedSizes", "missing_files", "parse_names"]

# No run has more layers or ranks than these digits can say; a name that says so is not the framework's.
_N = r"([0-9]{1,6})"
_LAYER = re.compile(rf"layer_{_N}(?:-model_{_N})?-model_states\.pt")
_RANK = re.compile(rf"mp_rank_{_N}_model_states\.pt")
_OPTIMIZER = re.compile(rf"(?:bf16_)?zero_pp_rank_{_N}_mp_rank_{_N}_optim_states\.pt")
_ZERO3 = re.compile(rf"zero_pp_rank_{_N}_mp_rank_{_N}_model_states\.pt")
_PARTITION = re.compile(r"(.*zero_pp_rank_)[0-9]+_mp_rank_[0-9]+_(.+)")
_SHOWN = 4
_COPY = "copy the missing files from the training run's storage"


@dataclass(frozen=True, slots=True)
class DeepSpeedNames:
    """Files by what their names say: (layer, tensor-parallel rank), model-parallel rank, (data rank, model-parallel
    rank) of optimizer files and of ZeRO-3's model files; and the rest.
    """

    layers: dict[tuple[int, int], str]
    ranks: dict[int, str]
    optimizer: dict[tuple[int, int], str]
    zero3: dict[tuple[int, int], str]
    others: tuple[str, ...]

    @property
    def tp(self) -> int | None:
        """Tensor-parallel size, if there are layer files."""
        return 1 + max(rank for _, rank in self.layers) if self.layers else None

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


def parse_names(names: Iterable[str]) -> DeepSpeedNames:
    """Sort a folder's files by what their names say."""
    layers: dict[tuple[int, int], str] = {}
    ranks: dict[int, str] = {}
    optimizer: dict[tuple[int, int], str] = {}
    zero3: dict[tuple[int, int], str] = {}
    others = []
    for name in names:
        if match := _LAYER.fullmatch(name):
            layers[int(match[1]), int(match[2] or 0)] = name
        elif match := _RANK.fullmatch(name):
            ranks[int(match[1])] = name
        elif match := _OPTIMIZER.fullmatch(name):
            optimizer[int(match[1]), int(match[2])] = name
        elif match := _ZERO3.fullmatch(name):
            zero3[int(match[1]), int(match[2])] = name
        else:
            others.append(name)
    return DeepSpeedNames(layers, ranks, optimizer, zero3, tuple(others))


@dataclass(frozen=True, slots=True)
class RecordedSizes:
    """What the rank files say of the grid, None if they do not: tensor-parallel size, model-parallel ranks,
    data-parallel size, and how many of the transformer layers have no file.
    """

    tp: int | None = None
    model_ranks: int | None = None
    dp: int | None = None
    lost_layers: int | None = None


def missing_files(names: DeepSpeedNames, sizes: RecordedSizes | None = None) -> Iterator[Finding]:
    """Holes in the grids of layer, rank and optimizer files, and files beyond the grids if ``sizes`` are recorded."""
    sizes = sizes or RecordedSizes()
    tp, model_ranks = sizes.tp or names.tp, sizes.model_ranks or names.model_ranks
    yield from _beyond(names, tp, model_ranks)
    if names.layers and tp:
        indices = sorted({index for index, _ in names.layers})
        grid = ((index, rank) for index in indices for rank in range(tp))
        lost = (f"layer_{i:02d}-model_{r:02d}-model_states.pt" for i, r in grid if (i, r) not in names.layers)
        there = sum(rank < tp for _, rank in names.layers)
        yield from _finding("layer files", lost, there, len(indices) * tp)
        gaps = [f"layer_{index:02d}" for index in sorted(_gaps(indices, sizes.lost_layers))]
        if gaps:
            yield Finding("damage", f"no file has the layer of {_list(gaps)}", None, _COPY, exit_code=6)
    if names.ranks or (names.optimizer and not names.zero3):
        lost = (f"mp_rank_{r:02d}_model_states.pt" for r in range(model_ranks) if r not in names.ranks)
        yield from _finding("mp_rank files", lost, sum(rank < model_ranks for rank in names.ranks), model_ranks)
    for what, found in (("optimizer files", names.optimizer), ("ZeRO-3 model files", names.zero3)):
        if found:
            # More partitions than data-parallel ranks are no fault: sequence parallelism makes them.
            dp = max(names.dp or 1, sizes.dp or 1)
            there = sum(rank < model_ranks for _, rank in found)
            yield from _finding(what, _lost_partitions(found, model_ranks, dp), there, dp * model_ranks)


def _beyond(names: DeepSpeedNames, tp: int | None, model_ranks: int) -> Iterator[Finding]:
    found = [name for (_, rank), name in names.layers.items() if tp is not None and rank >= tp]
    found += [name for rank, name in names.ranks.items() if rank >= model_ranks]
    found += [name for (_, r), name in (*names.optimizer.items(), *names.zero3.items()) if r >= model_ranks]
    if found:
        sizes = f"TP {tp} x PP {model_ranks // tp}" if tp else f"{model_ranks} model-parallel ranks"
        words = f"beyond the ranks of a model of {sizes}: {_list(sorted(found))}"
        yield Finding("damage", words, None, "move them out of the folder, or say which checkpoint they are of", 6)


def _lost_partitions(found: Mapping[tuple[int, int], str], model_ranks: int, dp: int) -> Iterator[str]:
    """The files of the grid of data ranks and model-parallel ranks that are not there, named like one that is."""
    match = _PARTITION.fullmatch(next(iter(found.values())))
    head, tail = (match[1], match[2]) if match else ("", "")
    grid = ((data, rank) for data in range(dp) for rank in range(model_ranks))
    return (f"{head}{d}_mp_rank_{r:02d}_{tail}" for d, r in grid if (d, r) not in found)


def _gaps(indices: Sequence[int], lost: int | None) -> Iterator[int]:
    inner = set(range(indices[0], indices[-1] + 1)) - set(indices)
    if lost is not None and (lost <= 0 or lost == len(inner)):
        yield from inner if lost > 0 else ()
        return
    # Forks leave out the number of a layer without parameters, right behind the embedding and before the final norm.
    yield from (index for index in inner if index not in (indices[0] + 1, indices[-1] - 1))


def _finding(what: str, lost: Iterator[str], there: int, of: int) -> Iterator[Finding]:
    """What is missing of a grid, whose size may be any number: a damaged file says it."""
    if count := of - there:
        words = f"{count} of {of} {what} are missing: {_list(list(islice(lost, _SHOWN)), count)}"
        yield Finding("damage", words, None, _COPY, exit_code=6)


def _list(items: Sequence[object], count: int | None = None) -> str:
    """The first of some items, or of the first of ``count``."""
    shown, more = ", ".join(map(str, items[:_SHOWN])), (len(items) if count is None else count) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
