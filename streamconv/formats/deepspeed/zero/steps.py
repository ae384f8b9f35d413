"""Are the files of all ranks of one step? Nothing in the parameters themselves would tell.

Model files count the engine's steps (``global_steps``), optimizer files those of the optimizer (``step`` of each
parameter's state, which may be a tensor of one element) [``deepspeed/runtime/engine.py:_save_checkpoint``,
``torch/optim/adam.py``].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from streamconv.containers.pickles.reader import leaves_of
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor

__all__ = ["check_engine_steps", "check_optimizer_steps"]


def check_engine_steps(files: Sequence[StoredFile]) -> None:
    """Check that all model files count the same steps of the engine.

    Raises:
        DamagedError: they do not.
    """
    _check(files, _engine_step, "global_steps")


def check_optimizer_steps(files: Sequence[StoredFile]) -> None:
    """Check that all optimizer files count the same steps of the optimizer.

    Raises:
        DamagedError: they do not.
    """
    _check(files, _optimizer_step, "the optimizer's step")


def _check(files: Sequence[StoredFile], step_of: Callable[[StoredFile], float | None], what: str) -> None:
    steps = [(file, step) for file in files if (step := step_of(file)) is not None]
    if len({step for _, step in steps}) <= 1:
        return
    usual, _ = Counter(step for _, step in steps).most_common(1)[0]
    file, other = next((file, step) for file, step in steps if step != usual)
    raise DamagedError(
        f"{what} is {other:g} here, and {usual:g} in {Counter(step for _, step in steps)[usual]} of {len(steps)} files",
        where=file.path,
        remedy="copy all files of one step together",
    )


def _engine_step(file: StoredFile) -> float | None:
    return _number(file.state.get("global_steps")) if isinstance(file.state, dict) else None


def _optimizer_step(file: StoredFile) -> float | None:
    for path, leaf in leaves_of(object, file.state, str(file.path)):
        if path and path[-1] == "step" and (number := _number(leaf)) is not None:
            return number
    return None


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
