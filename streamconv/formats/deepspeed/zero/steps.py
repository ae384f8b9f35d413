"""Are the files of all ranks of one step? Nothing in the parameters themselves would tell.

Model files count the engine's steps (``global_steps``), optimizer files those of the optimizer (``step`` of each
parameter's state, which may be a tensor of one element) [``deepspeed/runtime/engine.py:_save_checkpoint``,
``torch/optim/adam.py``].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from streamconv.containers.pickles.reader import walk
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor

__all__ = ["check_engine_steps", "check_optimizer_steps"]


Steps = dict[tuple[Any, ...], float]
"""The steps that a file counts, by their place in it."""


def check_engine_steps(files: Sequence[StoredFile]) -> None:
    """Check that all model files count the same steps of the engine.

    Raises:
        DamagedError: they do not.
    """
    _check([(file, _engine_steps(file)) for file in files], "global_steps")


def check_optimizer_steps(files: Sequence[StoredFile]) -> None:
    """Check that all optimizer files count the same steps of the optimizer; groups may differ, one may be younger.

    Raises:
        DamagedError: they do not.
    """
    _check([(file, _optimizer_steps(file)) for file in files], "the optimizer's step")


def _check(counted: Sequence[tuple[StoredFile, Steps]], what: str) -> None:
    for place in dict.fromkeys(place for _, steps in counted for place in steps):
        here = [(file, steps[place]) for file, steps in counted if place in steps]
        usual, times = Counter(step for _, step in here).most_common(1)[0]
        for file, step in here:
            if step != usual:
                raise DamagedError(
                    f"{what} is {step:g} here, and {usual:g} in {times} of {len(here)} files",
                    where=file.path,
                    remedy="copy all files of one step together",
                )


def _engine_steps(file: StoredFile) -> Steps:
    step = _number(file.state.get("global_steps")) if isinstance(file.state, dict) else None
    return {} if step is None else {(): step}


def _optimizer_steps(file: StoredFile) -> Steps:
    leaves = walk(file.state, str(file.path))
    return {path: step for path, leaf in leaves if path[-1:] == ("step",) and (step := _number(leaf)) is not None}


def _number(value: object) -> float | None:
    if isinstance(value, LazyTensor):
        return _stored_number(value)
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 else None
    )


def _stored_number(tensor: LazyTensor) -> float | None:
    """The value of a tensor of one element, None if it has several or is in a type that numpy lacks."""
    if tensor.numel != 1 or tensor.dtype.name not in ("float32", "float64", "int32", "int64"):
        return None
    (view,) = tensor.pieces[0].views
    return float(view.open(tensor.shape).reshape(-1)[0])
