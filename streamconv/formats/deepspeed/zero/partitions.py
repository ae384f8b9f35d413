"""The masters of ZeRO stages 1 and 2 and of the BF16 optimizer: each rank holds a run of every group's flat tensor.

A group's parameters stand in the order of ``param_shapes``, which with ``round_robin_gradients`` is the order of the
buckets [deepspeed/runtime/engine.py:_get_zero_param_shapes]. The flat tensor is padded to a multiple of twice the
ranks, and cut into equal runs; stages 1 and 2 save them without the padding [deepspeed/runtime/zero/stage_1_and_2.py:
_get_groups_without_padding], the BF16 optimizer with it [deepspeed/runtime/bf16_optimizer.py:state_dict]. With
``parameter_alignment`` there is padding between parameters too (``param_alignment_paddings``).

Experts: their groups are cut over the ranks that hold the same experts, so ``partition_count`` is smaller there, and
each rank calls its experts by numbers of its own, from 0. Rank r has the experts of expert-parallel rank ``r % EP``, or
``r // (DP / EP)`` with ``use_data_before_expert_parallelism`` [deepspeed/utils/groups.py:
_create_expert_and_data_parallel].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Record
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.text import shown
from streamconv.formats.common.faults import COPY_AGAIN, listed
from streamconv.formats.deepspeed.zero.flat import Flat, Rebuilt
from streamconv.formats.deepspeed.zero.recorded import Shapes, partition_counts
from streamconv.formats.recorded import whole

__all__ = ["EXPERT", "Partitions", "beyond_partitions", "joined_partitions", "optimizer_state"]

EXPERT = re.compile(r"(.*\bdeepspeed_experts\.)([0-9]{1,9})(\..+)", re.DOTALL)
"""An expert's number in a parameter's name [deepspeed/moe/experts.py]."""

_GROUPS, _SLICES, _GAPS = "single_partition_of_fp32_groups", "param_slice_mappings", "param_alignment_paddings"
_OTHER_RUN = "are all files of one run and one step?"


@dataclass(frozen=True, slots=True)
class Partitions:
    """The optimizer files of one model-parallel rank, in the order of their data-parallel ranks.

    ``data_first`` says that neighbouring ranks have the same experts.
    """

    files: Sequence[StoredFile]
    data_first: bool = False

    def states(self) -> list[Mapping[str, Any]]:
        """The optimizer's own entries of each file.

        Raises:
            DamagedError: a file has none.
        """
        return [optimizer_state(file) for file in self.files]


def optimizer_state(file: StoredFile) -> Mapping[str, Any]:
    """The optimizer's entries in an optimizer file.

    Raises:
        DamagedError: it has none.
    """
    state = file.state.get("optimizer_state_dict") if isinstance(file.state, dict) else None
    if not isinstance(state, dict):
        raise DamagedError("no optimizer_state_dict in an optimizer file", where=file.path)
    return state


def joined_partitions(parts: Partitions, groups: Sequence[Shapes]) -> tuple[Rebuilt, list[str]]:
    """The masters of all groups, and remarks.

    Args:
        parts: the optimizer files.
        groups: the shapes of each group, as the model file records them.

    Raises:
        DamagedError: files contradict each other or the shapes.
        UnsupportedError: the files are of a layout that is not read, by name.
    """
    states, first = parts.states(), parts.files[0]
    result, remarks = Rebuilt(), []
    if _GROUPS not in states[0]:
        old = next((key for key in states[0] if "sub_partition" in str(key)), None)
        raise UnsupportedError(
            f"no {_GROUPS}" + (f", but {old}: ZeRO stage 1 of before DeepSpeed 0.3.16" if old else ""),
            where=first.path,
            remedy="take the model's own weights: --weights model",
        )
    counts = partition_counts(states[0].get("partition_count", len(states)), len(groups), first.path)
    experts = _experts_of_a_rank(groups)
    for number, (shapes, count) in enumerate(zip(groups, counts, strict=True)):
        teams = _teams(len(states), count, parts, shapes)
        for team, ranks in enumerate(teams):
            mine = {
                f"{parts.files[rank].path.name}, group {number}": _group(parts, states, rank, number) for rank in ranks
            }
            flat = Flat(mine, first.path)
            gaps = _gaps(states[ranks[0]], number, len(shapes))
            rebuilt, starts = _cut(flat, shapes, gaps, 2 * count, first.path)
            remarks += _check_slices(parts, states, ranks, number, flat, starts)
            result.add(rebuilt, _global_names(shapes, team, experts))
    return result, list(dict.fromkeys(remarks))


def _group(parts: Partitions, states: Sequence[Mapping[str, Any]], rank: int, number: int) -> LazyTensor:
    groups, where = states[rank].get(_GROUPS), parts.files[rank].path
    if not isinstance(groups, list | tuple) or number >= len(groups):
        raise DamagedError(f"{_GROUPS} has no group {number}", where=where, remedy=_OTHER_RUN)
    group = groups[number]
    if not isinstance(group, LazyTensor):
        raise DamagedError(f"group {number} of {_GROUPS} is {shown(group)}, no tensor", where=where)
    return group


def _teams(ranks: int, count: int, parts: Partitions, shapes: Shapes) -> list[list[int]]:
    """The data-parallel ranks that share a group's flat tensor; several teams if the group is of experts."""
    if count == ranks:
        return [list(range(ranks))]
    if ranks % count or not any(EXPERT.fullmatch(name) for name in shapes):
        raise beyond_partitions(parts.files[0].path.parent, parts.files, count)
    experts = ranks // count
    if parts.data_first:
        return [list(range(team * count, (team + 1) * count)) for team in range(experts)]
    return [list(range(team, ranks, experts)) for team in range(experts)]


def beyond_partitions(folder: Path, files: Sequence[StoredFile], count: int) -> DamagedError:
    """The error for more optimizer files than a run has partitions, or for fewer."""
    beyond = [file.path.name for file in files[count:]]
    if not beyond:
        words = f"partition_count is {count}, and {len(files)} optimizer files are there"
        return DamagedError(words, where=folder, remedy=COPY_AGAIN)
    return DamagedError(
        f"partition_count is {count}, and {len(files)} optimizer files are there; beyond it: "
        f"{listed(beyond, len(beyond))}",
        where=folder,
        remedy="move those that are not of this run out of the folder",
    )


def _experts_of_a_rank(groups: Sequence[Shapes]) -> dict[str, int]:
    """How many experts a rank has in each layer, whose experts may be in several groups
    [deepspeed/moe/utils.py:split_params_into_different_moe_groups_for_optimizer, ``max_group_size``].
    """
    local: dict[str, int] = {}
    for match in (EXPERT.fullmatch(name) for shapes in groups for name in shapes):
        if match:
            local[match[1]] = max(local.get(match[1], 0), int(match[2]) + 1)
    return local


def _global_names(shapes: Shapes, team: int, local: Mapping[str, int]) -> dict[str, str]:
    """The names of a team's experts by their numbers in the whole model."""
    matches = {name: match for name in shapes if (match := EXPERT.fullmatch(name))}
    return {name: f"{match[1]}{team * local[match[1]] + int(match[2])}{match[3]}" for name, match in matches.items()}


def _gaps(state: Mapping[str, Any], number: int, count: int) -> list[int]:
    """The elements of padding behind each parameter of a group."""
    said = state.get(_GAPS)
    gaps = said[number] if isinstance(said, list | tuple) and number < len(said) else None
    numbers = [whole(gap) for gap in gaps] if isinstance(gaps, list | tuple) else []
    good = [gap for gap in numbers if gap is not None and 0 <= gap < 1 << 20]
    return good if len(good) == count else [0] * count


def _cut(
    flat: Flat, shapes: Shapes, gaps: Sequence[int], align: int, where: Path
) -> tuple[Rebuilt, dict[str, tuple[int, int]]]:
    """The parameters of a flat tensor, and the elements (start, stop) where each stands."""
    result, starts, position = Rebuilt(sources=dict(flat.parts)), {}, 0
    padding = []
    for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
        stop = position + prod(shape)
        starts[name] = position, stop
        padding.append((stop, stop + gap))
        position = stop + gap
    position -= gaps[-1] if gaps else 0  # the last may have been cut off with the padding of the whole
    rest = flat.numel - position
    if not 0 <= rest < align + (gaps[-1] if gaps else 0) + 1:
        raise DamagedError(
            f"the ranks hold {flat.numel} elements of a group whose parameters have {position}",
            where=where,
            remedy=_OTHER_RUN,
        )
    for name, (start, stop) in starts.items():
        result.tensors[name] = flat.cut(start, stop).shaped(shapes[name]) if flat.parts else _nothing(name, where)
    for start, stop in (*padding[:-1], (position, flat.numel)):
        for part, box in flat.boxes(start, stop):
            result.padding.setdefault(part, []).append(box)
    return result, starts


def _nothing(name: str, where: Path) -> LazyTensor:
    raise DamagedError(f"no rank holds {name}", where=where)


def _check_slices(
    parts: Partitions,
    states: Sequence[Mapping[str, Any]],
    ranks: Sequence[int],
    number: int,
    flat: Flat,
    starts: Mapping[str, tuple[int, int]],
) -> list[str]:
    """Hold where each parameter stands against what each rank records of it; returns remarks.

    With ``round_robin_gradients`` and without alignment the records are of the order before the turns, and wrong
    [``deepspeed/runtime/zero/stage_1_and_2.py:_link_all_hp_params``, up to 0.19.8].

    Raises:
        DamagedError: the places differ.
    """
    position, remarks = 0, []
    before = _before_turns(starts, len(ranks))
    for rank, part in zip(ranks, flat.parts.values(), strict=True):
        stop = position + part.numel
        here, said = _held(starts, position, stop), _slices(states[rank], number)
        if said is not None and said != here:
            if said != _held(before, position, stop):
                name = next((n for n in here if said.get(n) != here[n]), next(iter(said), "?"))
                raise DamagedError(
                    f"{name} stands at {here.get(name, 'no place')} (start, elements) of this rank's part by "
                    f"param_shapes, and at {said.get(name, 'no place')} by {_SLICES}",
                    where=parts.files[rank].path,
                    remedy=f"{_OTHER_RUN} Else take the model's own weights: --weights model",
                )
            remarks.append(f"{_SLICES} are of the order before round_robin_gradients: param_shapes counts")
        position = stop
    return remarks


def _held(starts: Mapping[str, tuple[int, int]], position: int, stop: int) -> dict[str, tuple[int, int]]:
    """(start, elements) of each parameter in the part from ``position`` to ``stop`` of a flat tensor."""
    held = {}
    for name, (first, last) in starts.items():
        low, high = max(first, position), min(last, stop)
        if low < high:
            held[name] = low - position, high - low
    return held


def _before_turns(starts: Mapping[str, tuple[int, int]], count: int) -> dict[str, tuple[int, int]]:
    """Where parameters would stand in the order before ranks took turns: the k-th of rank j's was the (j + k * ranks)th
    [``deepspeed/runtime/zero/stage_1_and_2.py:_round_robin_reorder``].
    """
    names = list(starts)
    order = sorted(
        range(len(names)), key=[at for first in range(count) for at in range(first, len(names), count)].__getitem__
    )
    places, position = {}, 0
    for at in order:
        first, last = starts[names[at]]
        places[names[at]] = position, position + last - first
        position += last - first
    return places


def _slices(state: Mapping[str, Any], number: int) -> dict[str, tuple[int, int]] | None:
    """(start, elements) of each parameter in a rank's part, as the rank records them; None if it does not."""
    said = state.get(_SLICES)
    group = said[number] if isinstance(said, list | tuple) and number < len(said) else None
    if not isinstance(group, dict):
        return None
    found = {}
    for name, address in group.items():
        attributes = address.attributes if isinstance(address, Record) else {}
        start, numel = whole(attributes.get("start")), whole(attributes.get("numel"))
        if start is None or numel is None:
            return None
        if numel:
            found[str(name)] = start, numel
    return found
