"""The parameters of a ZeRO stage 3 folder: parts of flat tensors in the optimizer files.

Each data-parallel rank holds its part of every parameter, one behind the other in the order of ``param_shapes``, in
``fp32_flat_groups`` of its optimizer file, which follow one another. A part has ``ceil(numel / DP)`` elements.
The last ones of a parameter that do not divide so are padding, which nobody sets: it holds anything
[deepspeed/utils/zero_to_fp32.py:_zero3_merge_trainable_params, zero3_partitioned_param_info].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from streamconv.core.lazy import LazyTensor, concat
from streamconv.formats.survey import Survey
from streamconv.inspection.opening import open_all
from streamconv.inspection.report import Finding

__all__ = ["FlatParameters", "flat_parameters"]

_FLAT = "optimizer_state_dict.fp32_flat_groups."


@dataclass(slots=True)
class FlatParameters:
    """What the optimizer files of a folder hold of parameters.

    ``parts`` are the parts of parameters without padding, by file and parameter, and ``shapes`` the shapes of the whole
    parameters by the same names. ``whole`` are the flat tensors that the parts are cut from, ``findings`` name files
    that cannot be opened. A flat tensor that does not fit the recorded shapes is a part as a whole, under its stored
    name.
    """

    parts: dict[str, LazyTensor] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    whole: list[LazyTensor] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def flat_parameters(found: Survey) -> FlatParameters:
    """Open all optimizer files of a ZeRO-3 folder, metadata only."""
    names, result = found.names, FlatParameters()
    ranks = {file.path.name: file for file in found.ranks.files}
    for (data, model), name in sorted(names.optimizer.items()):
        files, broken = open_all([found.folder / name])
        result.findings += broken
        states = ranks.get(names.zero3.get((data, model), ""))
        for file in files:
            flat = {key: tensor for key, tensor in file.tensors().items() if key.startswith(_FLAT)}
            shapes = [] if states is None else list(_shapes(states.state))
            parts = _parts(flat, shapes, data, names.dp or 1)
            result.parts |= {f"{name}:{key}": tensor for key, tensor in (flat if parts is None else parts).items()}
            result.shapes |= {f"{name}:{key}": shape for key, shape in shapes if key in (parts or ())}
            result.whole += flat.values()
    return result


def _parts(
    flat: Mapping[str, LazyTensor], shapes: Sequence[tuple[str, tuple[int, ...]]], rank: int, dp: int
) -> dict[str, LazyTensor] | None:
    """The parts of parameters that a rank has, by name; None if the shapes are not recorded or do not fit."""
    sizes = [-(-prod(shape) // dp) for _, shape in shapes]
    one_axis = [tensor for tensor in flat.values() if len(tensor.shape) == 1]
    if not shapes or not flat or len(one_axis) < len(flat) or len({tensor.dtype for tensor in one_axis}) > 1:
        return None
    joined, parts, position = concat(one_axis, 0), {}, 0
    if sum(sizes) != joined.numel or len({name for name, _ in shapes}) < len(shapes):
        return None
    for (name, shape), size in zip(shapes, sizes, strict=True):
        true = min(size, max(0, prod(shape) - rank * size))
        if true:
            parts[name] = joined.slice(0, position, position + true)
        position += size
    return parts


def _shapes(state: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each parameter that ``param_shapes`` lists; the file may come from anywhere."""
    groups = state.get("param_shapes") if isinstance(state, dict) else None
    for group in groups if isinstance(groups, list | tuple) else ():
        for name, shape in group.items() if isinstance(group, dict) else ():
            sizes = tuple(shape) if isinstance(shape, list | tuple) else (-1,)
            if all(type(size) is int and 0 <= size < 1 << 63 for size in sizes):
                yield str(name), sizes
            else:
                yield str(name), (1 << 62,)  # fits nowhere
