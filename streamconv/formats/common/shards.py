"""Join the tensors of several ranks: which shards belong together, and along which axis they are cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor
from streamconv.models.parameter import ParameterId, Section
from streamconv.models.registry import known_families

__all__ = ["check_axes", "check_same_parameters", "count_layers", "join_ranks", "likely_axis"]

_COPY_BOTH = "one of them is of another layer or checkpoint: copy both again from the training run's storage"


def check_same_parameters(ranks: Sequence[Collection[ParameterId]], names: Sequence[str], folder: Path) -> None:
    """Check that all tensor-parallel ranks hold the same parameters.

    Raises:
        DamagedError: one holds others than the first.
    """
    for rank, places in enumerate(ranks):
        for place in sorted(set(places) ^ set(ranks[0]), key=str):
            raise DamagedError(
                f"{place.key} is not in both {names[0]} and {names[rank]}", where=folder, remedy=_COPY_BOTH
            )


def join_ranks(
    ranks: Sequence[Mapping[ParameterId, LazyTensor]], names: Sequence[str], folder: Path
) -> dict[ParameterId, tuple[LazyTensor, ...]]:
    """The shards of each parameter, in the order of the ranks, which must have the same keys, shapes and dtypes.

    Raises:
        DamagedError: two ranks differ, or a tensor has not the axes that its parameter has.
    """
    check_same_parameters(ranks, names, folder)
    joined = {place: tuple(tensors[place] for tensors in ranks) for place in ranks[0]}
    for place, shards in joined.items():
        for rank, shard in enumerate(shards):
            if (shard.shape, shard.dtype) != (shards[0].shape, shards[0].dtype):
                raise DamagedError(
                    f"{place.key} is {shards[0].shape} {shards[0].dtype} in {names[0]}, "
                    f"but {shard.shape} {shard.dtype} in {names[rank]}",
                    where=folder,
                    remedy=_COPY_BOTH,
                )
    check_axes(joined, folder)
    return joined


def check_axes(
    tensors: Mapping[ParameterId, Sequence[LazyTensor]],
    folder: Path,
    called: Callable[[ParameterId], str] | None = None,
) -> None:
    """Check that each parameter that a family has is stored with as many axes as it has there.

    Args:
        tensors: the parameters' shards.
        folder: for messages.
        called: the stored name of a parameter, None if that is the canonical one.

    Raises:
        DamagedError: one is not, such as a number under the name of a matrix.
    """
    for place, shards in tensors.items():
        axes = _axes(place.section, place.key)
        for shard in shards:
            if axes is not None and len(shard.shape) != axes:
                stored = "" if called is None else f"; stored as {called(place)}"
                raise DamagedError(f"{place.name} has shape {shard.shape}, {axes} axes were due{stored}", where=folder)


@cache
def _axes(section: Section, key: str) -> int | None:
    rows = (family.rows.get((section, key)) for family in known_families())
    return next((len(row.shape) for row in rows if row is not None), None)


def count_layers(tensors: Mapping[ParameterId, Any], folder: Path) -> int:
    """The number of transformer layers, which must be numbered 0, 1, 2 and on.

    Raises:
        DamagedError: a number is missing, or there is no layer.
    """
    numbers = {parameter.layer for parameter in tensors if parameter.section is Section.LAYER}
    if not numbers or numbers != set(range(len(numbers))):
        raise DamagedError(
            f"transformer layers are numbered {sorted(numbers)[:8]}, not from 0 without a gap", where=folder
        )
    return len(numbers)


def likely_axis(parameter: ParameterId) -> int | None:
    """The axis along which a parameter of an unknown family is cut, None if every rank holds a copy.

    A family that has the key decides it. Otherwise a matrix is cut by rows, except the two row-parallel ones of each
    block [``megatron/core/tensor_parallel/layers.py``].
    """
    for family in known_families():
        if row := family.rows.get((parameter.section, parameter.key)):
            return row.axis
    key = parameter.key
    if parameter.section is Section.FINAL_NORM or "norm" in key or key.startswith("position_embeddings"):
        return None
    if key.endswith(("dense.weight", "dense_4h_to_h.weight", "linear2.weight")):
        return 1
    return None if key.endswith(("dense.bias", "dense_4h_to_h.bias", "linear2.bias")) else 0
