"""The ``mp_rank_*`` files of a DeepSpeed checkpoint: what they record of the run, and what is not converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.reader import Record, leaves_of
from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import Faults
from streamconv.formats.deepspeed.grid import RecordedSizes
from streamconv.formats.deepspeed.names import FileKind, is_optimizer_file, parse_name
from streamconv.formats.recorded import whole
from streamconv.formats.source import Dropped
from streamconv.io.reading import nbytes_there

__all__ = [
    "RankFiles",
    "left_behind",
    "open_ranks",
    "recorded_shapes",
    "recorded_sizes",
    "refuse_old_rows",
    "refuse_second_module",
]

_SAME_ARGS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "tensor_model_parallel_size",
)
_SAME_RUN = "the files are of different runs or steps: keep those of one"


@dataclass(frozen=True, slots=True)
class RankFiles:
    """The ``mp_rank_*`` files by rank; the plain entries of the first are those of the checkpoint."""

    files: tuple[StoredFile, ...]

    @property
    def state(self) -> Mapping[str, Any]:
        """The first rank's entries."""
        return self.files[0].state if self.files else {}

    @property
    def args(self) -> Mapping[str, Any] | None:
        """The training arguments, None if there are none."""
        args = self.state.get("args")
        return args.attributes if isinstance(args, Record) else None

    @property
    def experts(self) -> dict[int, tuple[int, ...]]:
        """For each model-parallel rank the number of experts in each of its layers of experts, where it is recorded
        (``num_experts`` [deepspeed/runtime/engine.py:_save_moe_checkpoint]).
        """
        found = {}
        for file in self.files:
            numbers, name = file.state.get("num_experts"), parse_name(file.path.name)
            if name is not None and name.kind is FileKind.RANK and isinstance(numbers, list):
                found[name.first] = tuple(max(0, whole(number) or 0) for number in numbers)
        return found

    def recorded(self, key: str) -> int | None:
        """TP or PP as DeepSpeed records it since 2026-08, in ``checkpoint_parallel_dimensions``."""
        sizes = self.state.get("checkpoint_parallel_dimensions")
        return whole(sizes.get(key)) if isinstance(sizes, dict) else None

    def sizes(self, args: Mapping[str, Any] | None, *, is_pipeline: bool) -> RecordedSizes:
        """The recorded sizes: DeepSpeed's, or else those of ``args`` by the names of Megatron-DeepSpeed.

        Without the pipeline engine a rank file belongs to a tensor-parallel rank, whichever PP the arguments have.
        """
        said = args or {}
        tp = _first(self.recorded("tp_degree"), said.get("tensor_model_parallel_size"))
        pp = _first(self.recorded("pp_degree"), said.get("pipeline_model_parallel_size") if is_pipeline else 1)
        dp = next((size for file in self.files if (size := _first(file.state.get("dp_world_size")))), None)
        return RecordedSizes(tp, pp, dp)


def _first(*values: Any) -> int | None:
    return next((value for value in values if whole(value) is not None and value > 0), None)


def open_ranks(folder: Path, names: Iterable[str], faults: Faults) -> RankFiles:
    """Open the files of model-parallel ranks, in their order; there may be none.

    Raises:
        DamagedError: ``faults`` is strict, and a file cannot be read, or is of another run than the others.
    """
    files = []
    for name in names:
        file = faults.opened(folder / name, open_torch)
        if file is not None and not isinstance(file.state, dict):
            faults.note(DamagedError("a rank's file that is not a dictionary", where=file.path))
        elif file is not None:
            files.append(file)
    _check_same_run(files, faults)
    return RankFiles(tuple(files))


def _identity(state: Mapping[str, Any]) -> list[int | None]:
    args = state.get("args")
    attributes = args.attributes if isinstance(args, Record) else {}
    values = [state.get("iteration"), *(attributes.get(name) for name in _SAME_ARGS)]
    return [whole(value) for value in values]


def _check_same_run(files: Sequence[StoredFile], faults: Faults) -> None:
    """Note each rank whose iteration or arguments differ from those of most ranks."""
    identities = [_identity(file.state) for file in files]
    for name, values in zip(("iteration", *_SAME_ARGS), zip(*identities, strict=True), strict=False):
        usual, _ = Counter(values).most_common(1)[0]
        for file, mine in zip(files, values, strict=True):
            if mine != usual:
                words = f"{name} is {mine} in {file.path.name}, where the other ranks have {usual}"
                faults.note(DamagedError(words, where=file.path, remedy=_SAME_RUN))


def refuse_old_rows(ranks: RankFiles) -> None:
    """Refuse files whose rows of query_key_value are in an order of before checkpoint_version 2.

    Raises:
        UnsupportedError: a file records such a version.
    """
    for file in ranks.files:
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
    """The recorded values of a parallel size by their source, the most trusted first."""
    values = {
        "checkpoint_parallel_dimensions": ranks.recorded(f"{recorded}_degree"),
        f"args.{argument}": (ranks.args or {}).get(argument),
    }
    return {source: size for source, value in values.items() if (size := whole(value)) is not None}


def refuse_second_module(ranks: RankFiles) -> None:
    """Refuse rank files that hold parameters although layer files hold the model.

    Raises:
        UnsupportedError: a rank file does.
    """
    for file in ranks.files:
        if any(leaves_of(LazyTensor, file.state.get("module"), str(file.path))):
            raise UnsupportedError(
                "there are layer files, and parameters in this file too",
                where=file.path,
                remedy="keep the one that is current",
            )


def left_behind(
    folder: Path, names: Iterable[str], ranks: RankFiles, read: Collection[str] = ("module",)
) -> list[Dropped]:
    """What is not converted, with the reason: optimizer files, and tensors of rank files that are no parameters.

    Args:
        folder: the one that ``names`` are in.
        names: the files, of which those of the optimizer are meant.
        ranks: the rank files.
        read: the entries of these whose tensors are converted.
    """
    dropped = []
    optimizer = [name for name in names if is_optimizer_file(name)]
    if optimizer:
        nbytes = nbytes_there(folder / name for name in optimizer)
        dropped.append(Dropped(f"{len(optimizer)} *_optim_states.pt files", nbytes, "optimizer state: parameters only"))
    groups: dict[str, tuple[int, int]] = {}
    for file in ranks.files:
        for name, tensor in file.tensors().items():
            group = name.split(".", 1)[0]
            if group not in read:
                count, nbytes = groups.get(group, (0, 0))
                groups[group] = (count + 1, nbytes + tensor.nbytes)
    for group, (count, nbytes) in groups.items():
        dropped.append(
            Dropped(f"{count} tensors of {group} in mp_rank files", nbytes, _REASONS.get(group, "not a parameter"))
        )
    return dropped


_REASONS = {
    "frozen_param_fragments": "frozen parameters, which the module has too",
    "optimizer": "optimizer state: parameters only",
    "args": "a tensor among the arguments: not plain data",
    "rng_state": "random number state: parameters only",
    "torch_rng_state": "random number state: parameters only",
    "cuda_rng_state": "random number state: parameters only",
    "rng_tracker_states": "random number state: parameters only",
    "lr_scheduler": "scheduler state: parameters only",
}
