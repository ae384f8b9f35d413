"""What the model files of a plain DeepSpeed run record, checked: shapes, buffers, shared names, sizes.

Entries: ``deepspeed/runtime/engine.py:_save_checkpoint``. The files may come from anywhere, so each may be any value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError
from streamconv.core.text import shown
from streamconv.formats.recorded import whole

__all__ = ["Shapes", "buffer_names", "groups_of", "partition_counts", "shapes_of", "shared_names"]

Shapes = dict[str, tuple[int, ...]]
"""The shapes of parameters by name, in the order in which a partition holds them."""

_MOST = 1 << 62


def groups_of(state: Mapping[str, Any], where: Path) -> list[Shapes] | None:
    """The parameters of each of the optimizer's groups (``param_shapes``), None if they are not recorded.

    Raises:
        DamagedError: the entry is something else.
    """
    groups = state.get("param_shapes")
    if groups is None:
        return None
    if isinstance(groups, dict):  # before DeepSpeed 0.3.16 there was one group
        groups = [groups]
    if not isinstance(groups, list | tuple):
        raise DamagedError(f"param_shapes is no list of groups: {shown(groups)}", where=where)
    return [shapes_of(group, "param_shapes", where) for group in groups]


def shapes_of(group: Any, what: str, where: Path) -> Shapes:
    """Names and shapes of one group.

    Raises:
        DamagedError: it is something else.
    """
    if not isinstance(group, dict):
        raise DamagedError(f"{what}: a group is no mapping of names to shapes: {shown(group)}", where=where)
    return dict(_shapes(group, what, where))


def _shapes(group: Mapping[Any, Any], what: str, where: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in group.items():
        sizes = tuple(shape) if isinstance(shape, list | tuple) else (None,)
        if not isinstance(name, str) or not all(type(size) is int and 0 <= size < _MOST for size in sizes):
            raise DamagedError(f"{what}: {shown(name)} has the shape {shown(shape)}", where=where)
        yield name, sizes


def buffer_names(state: Mapping[str, Any]) -> set[str]:
    """The names of the persistent buffers in ``module``."""
    names = state.get("buffer_names")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list | tuple) else set()


def shared_names(state: Mapping[str, Any], where: Path) -> dict[str, str]:
    """Names that share another one's parameter, and that one (``shared_params``).

    Raises:
        DamagedError: the entry is something else.
    """
    shared = state.get("shared_params")
    if isinstance(shared, list | tuple):  # before DeepSpeed 0.9 a list of pairs
        pairs = [pair for pair in shared if isinstance(pair, list | tuple) and len(pair) == 2]
        if not all(isinstance(name, str) for pair in pairs for name in pair):
            raise DamagedError(f"shared_params is no list of pairs of names: {shown(shared)}", where=where)
        shared = {pair[0]: pair[1] for pair in pairs}
    if shared is None:
        return {}
    if not isinstance(shared, dict) or not all(isinstance(name, str) for pair in shared.items() for name in pair):
        raise DamagedError(f"shared_params is no mapping of names: {shown(shared)}", where=where)
    return dict(shared)


def partition_counts(said: Any, groups: int, where: Path) -> tuple[int, ...]:
    """The number of partitions of each group (``partition_count``), which is one number or a list of them.

    Raises:
        DamagedError: it is something else.
    """
    numbers = list(said) if isinstance(said, list | tuple) else [said] * groups
    counts = tuple(number for each in numbers if (number := whole(each)) is not None and number > 0)
    if len(counts) != groups:
        raise DamagedError(f"partition_count is {shown(said)} for {groups} groups of parameters", where=where)
    return counts
