"""Which files of a DeepSpeed folder a rank of another TP and PP would join, in DeepSpeed's own terms.

These are the maps of ``deepspeed/checkpoint/deepspeed_checkpoint.py`` and ``reshape_meg_2d.py``. They join whole files:
a target's size divides the source's. The first layer file counts as the embedding, the last as the final norm, all
between as transformer layers. One thing differs: where layers do not divide by PP, DeepSpeed's map of stages loses the
last ones; here each layer has a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

from streamconv.bigscience.degree_files import Degrees, RankedFolder, layer_shapes
from streamconv.core.errors import DamagedError, StorageError, StreamconvError, UsageError
from streamconv.formats.deepspeed.partition import uniform_bounds
from streamconv.formats.deepspeed.source import open_model
from streamconv.formats.options import RowOrderOptions

__all__ = ["DegreeMaps", "RankMap", "maps_to", "merged_shapes", "stays_whole"]

# SEQUENTIAL_LAYERS and LAYER_CONCAT_DIM of deepspeed_checkpoint.py: parameters that are not joined, and those that are
# joined on another axis than 0.
_FIRST_OF_ALL = (
    "input_layernorm.weight",
    "input_layernorm.bias",
    "self_attention.dense.bias",
    "post_attention_layernorm.weight",
    "post_attention_layernorm.bias",
    "mlp.dense_4h_to_h.bias",
    "position_embeddings.weight",
)
_AXES = {"self_attention.dense.weight": 1, "mlp.dense_4h_to_h.weight": 1}
# Norms that every rank holds whole, although DeepSpeed joins them: BLOOM's embedding norm, a final norm before a head.
_WHOLE = ("word_embeddings.norm.weight", "word_embeddings.norm.bias", "weight", "bias")

_REMEDY = "say a divisor of it; `streamconv plan` takes any size"

Item = TypeVar("Item")
RankMap = dict[tuple[int, int], list[int]]


@dataclass(frozen=True, slots=True)
class DegreeMaps:
    """The files that the ranks of a target would join.

    Attributes:
        target: its degrees; DP is the source's.
        old_ranks: the model-parallel rank at each (stage, tensor-parallel rank) of the source.
        new_ranks: the source's ranks that a rank of the target joins, by the same pair.
        stages: layer keys by the target's stage.
        layers: files to join by (tensor-parallel rank, stage), a list for each layer of the stage.
        embedding: the first layer's files to join, by tensor-parallel rank; ``norm``: those of the last layer.
        notes: remarks for the user.
    """

    target: Degrees
    old_ranks: RankMap
    new_ranks: RankMap
    stages: dict[int, list[str]]
    layers: dict[tuple[int, int], list[list[str]]]
    embedding: dict[int, list[str]]
    norm: dict[int, list[str]]
    notes: list[str]


def maps_to(folder: RankedFolder, tp: int | None, pp: int | None) -> DegreeMaps:
    """The maps from a folder's degrees to a TP and a PP; None keeps the source's.

    Raises:
        UsageError: a target is no divisor of the source's size.
    """
    source = folder.degrees
    target = _target(source, tp, pp)
    old = {(stage, rank): [stage * source.tp + rank] for stage in range(source.pp) for rank in range(source.tp)}
    keys = folder.keys[1:-1]
    counts, notes = _stages(folder, target.pp, len(keys))
    if source.pp % target.pp:
        notes.append(
            f"PP {source.pp} is no multiple of {target.pp}: the 2d map takes ranks of a stage apart, as DeepSpeed's"
        )
    cuts = accumulate(counts, initial=0)
    stages = {stage: keys[low:high] for stage, (low, high) in enumerate(pairwise(cuts))}
    layers: dict[tuple[int, int], list[list[str]]] = {}
    for stage, stage_keys in stages.items():
        for key in stage_keys:
            for rank, files in enumerate(_split(folder.files_of(key), target.tp)):
                layers.setdefault((rank, stage), []).append(files)
    ends = [_split(folder.files_of(key), target.tp) for key in (folder.keys[0], folder.keys[-1])] if folder.keys else []
    embedding, norm = (dict(enumerate(end)) for end in ends or ([], []))
    return DegreeMaps(target, old, _new_ranks(old, source, target), stages, layers, embedding, norm, notes)


def _target(source: Degrees, tp: int | None, pp: int | None) -> Degrees:
    tp = source.tp if tp is None else tp
    pp = source.pp if pp is None else pp
    if tp < 1 or source.tp % tp:
        raise UsageError(
            f"--target_tp {tp}: these maps join whole ranks, and the source has {source.tp}", remedy=_REMEDY
        )
    # DeepSpeed's own condition: the joined ranks of all stages together must divide, not the stages.
    if not 1 <= pp <= source.pp or source.pp * (source.tp // tp) % pp:
        raise UsageError(
            f"--target_pp {pp}: these maps join whole stages, and the source has {source.pp}", remedy=_REMEDY
        )
    return Degrees(tp, pp, source.dp)


def _split(values: Sequence[Item], parts: int) -> list[list[Item]]:
    size = len(values) // parts
    return [list(values[part * size : (part + 1) * size]) for part in range(parts)]


def _new_ranks(old: RankMap, source: Degrees, target: Degrees) -> RankMap:
    """``reshape_meg_2d_parallel``: neighbouring ranks, then neighbouring stages, in the order that DeepSpeed prints."""
    joined: RankMap = {}
    for stage in range(source.pp):
        row = [number for rank in range(source.tp) for number in old[stage, rank]]
        joined |= {(stage, rank): numbers for rank, numbers in enumerate(_split(row, target.tp))}
    if source.pp == target.pp:
        return joined
    result: RankMap = {}
    for rank in range(target.tp):
        column = [number for stage in range(source.pp) for number in joined[stage, rank]]
        result |= {(stage, rank): numbers for stage, numbers in enumerate(_split(column, target.pp))}
    return result


def _stages(folder: RankedFolder, pp: int, count: int) -> tuple[list[int], list[str]]:
    """(number of layers on each stage, remarks for the user).

    All stages get the same number, as in DeepSpeed. If the layers do not divide by PP, it is the source's own numbers
    if PP stays the same and they are known, otherwise those of DeepSpeed's ``partition_uniform``.
    """
    own = _own_stages(folder, count) if pp == folder.degrees.pp and pp > 1 and count else None
    if count % pp == 0:
        even = [count // pp] * pp
        words = f"stages of {_listed(even)} layers are DeepSpeed's reckoning; the source's own are of"
        return even, [] if own in (None, even) else [f"{words} {_listed(own or ())} layers"]
    counts = own or [high - low for low, high in pairwise(uniform_bounds(count, pp))]
    origin = "the source's own" if own else "cut as DeepSpeed cuts a uniform partition"
    return counts, [f"{count} layers do not divide by PP {pp}: the stages are of {_listed(counts)} layers, {origin}"]


def _listed(counts: Sequence[int]) -> str:
    return ",".join(map(str, counts))


def _own_stages(folder: RankedFolder, count: int) -> list[int] | None:
    """The source's own layers on each stage if known; a final norm among the ``count`` layers is on the last."""
    try:
        stages = open_model(folder.home, RowOrderOptions()).stages
    except StorageError:
        raise
    except StreamconvError:
        return None
    if stages is None or len(stages) != folder.degrees.pp or not 0 <= count - sum(stages) <= 1:
        return None
    return [*stages[:-1], stages[-1] + count - sum(stages)]


def merged_shapes(paths: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that ``_merge_state_dicts`` returns: of a parameter's shards joined, or of the first shard.

    Raises:
        DamagedError: shards cannot be joined.
    """
    shards = [layer_shapes(path) for path in paths]
    merged = dict(shards[0])
    for key, first in shards[0].items():
        axis = _AXES.get(key, 0)
        if key in _FIRST_OF_ALL:
            continue
        parts = [shapes.get(key, ()) for shapes in shards]
        rests = {(shape[:axis], shape[axis + 1 :]) for shape in parts}
        if len(rests) != 1 or min(map(len, parts)) <= axis:
            raise DamagedError(f"{key} is of shapes {parts}, which do not join on axis {axis}", where=paths[0])
        merged[key] = (*first[:axis], sum(shape[axis] for shape in parts), *first[axis + 1 :])
    return merged


def stays_whole(key: str) -> bool:
    """Whether every rank holds this parameter whole, although :func:`merged_shapes` joins it, as DeepSpeed does."""
    return key in _WHOLE
