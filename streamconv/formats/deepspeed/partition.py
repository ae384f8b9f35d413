"""Recompute which pipeline stage owned which layer, as DeepSpeed's PipelineModule decided it when training began.

This is needed only if a checkpoint does not record it (ZeRO stage 0 saves ``param_shapes`` as None). The methods are
those of ``deepspeed/runtime/pipe/module.py:_partition_layers``. Their arithmetic, in ``deepspeed/runtime/utils.py``,
has changed twice: ``partition_uniform`` in 0.10.1 (e8318634b) and ``partition_balanced`` in 0.12.5 (2bdf061f4). A
result is returned only if the version is known or makes no difference.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

__all__ = ["PipelineModules", "balanced_bounds", "probed_bounds", "release_of", "stages_by_method", "uniform_bounds"]

Version = tuple[int, ...]

_PLAIN = re.compile(r"[\w|.^$]*", re.ASCII)
_RELEASE = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class PipelineModules:
    """The modules that were partitioned, in order: class name and trainable parameters of each on one rank.

    ``first_layer`` is the index of the first transformer layer.
    """

    names: tuple[str, ...]
    numels: tuple[int, ...]
    first_layer: int
    num_layers: int


def release_of(version: str | None) -> Version | None:
    """DeepSpeed's release as three numbers, from ``ds_version``; None if it does not begin with them."""
    match = _RELEASE.match(version or "")
    return None if match is None else tuple(map(int, match.groups()))


def stages_by_method(modules: PipelineModules, method: str, pp: int, version: Version | None) -> tuple[int, ...] | None:
    """Transformer layers on each of ``pp`` stages under ``method``, or None if it cannot be recomputed with certainty.

    Args:
        modules: the modules that were partitioned.
        method: ``uniform``, ``parameters`` or ``type:regex``, as in ``args.pp_partition_method``. A regex comes from a
            file, and with repetitions in it could take years: it must be words with ``|`` between them.
        pp: the number of stages.
        version: DeepSpeed's (``ds_version``), None if unknown.
    """
    method = method.lower()
    if method == "uniform":
        candidates = _candidates(version, (0, 10, 1), len(modules.names), pp, even_bounds, uniform_bounds)
    elif method == "parameters":
        candidates = _candidates(version, (0, 12, 5), modules.numels, pp, probed_bounds, balanced_bounds)
    elif method.startswith("type:"):
        words = method.split(":")[1]
        if not _PLAIN.fullmatch(words):
            return None
        pattern = re.compile(words, re.IGNORECASE)
        weights = [1 if pattern.search(name) else 0 for name in modules.names]
        candidates = _candidates(version, (0, 12, 5), weights, pp, probed_bounds, balanced_bounds)
    else:
        return None
    first, last = modules.first_layer, modules.first_layer + modules.num_layers
    layouts = set()
    for bounds in candidates:
        cuts = [min(max(bound, first), last) - first for bound in bounds]
        layouts.add(tuple(b - a for a, b in pairwise(cuts)))
    return layouts.pop() if len(layouts) == 1 else None


def _candidates(
    version: Version | None,
    changed: Version,
    items: object,
    pp: int,
    before: Callable[..., list[int]],
    since: Callable[..., list[int]],
) -> list[list[int]]:
    methods = [before, since] if version is None else [since if version >= changed else before]
    return [method(items, pp) for method in methods]


def even_bounds(count: int, parts: int) -> list[int]:
    """``partition_uniform`` before 0.10.1: the last run takes the remainder."""
    size = count // parts if count > parts else 1
    return [min(size * part, count) for part in range(parts)] + [count]


def uniform_bounds(count: int, parts: int) -> list[int]:
    """Bounds of ``parts`` runs of equal length over ``count`` items; the first ones take the remainder."""
    if count <= parts:
        return [min(part, count) for part in range(parts + 1)]
    size, extra = divmod(count, parts)
    return [part * size + min(part, extra) for part in range(parts + 1)]


def balanced_bounds(weights: Sequence[int], parts: int) -> list[int]:
    """``partition_balanced`` since 0.12.5: runs whose heaviest and lightest differ little; of equals, the latest cut.

    A dynamic programme over (items, runs) that keeps one best prefix, so it does not always find the least difference.
    """
    count = len(weights)
    if count <= parts:
        return uniform_bounds(count, parts)
    total = [0, *accumulate(weights)]
    never = float("inf")
    # best[i] = (heaviest, lightest) of the first i items in the current number of runs
    best: list[tuple[float, float]] = [(0.0, never), *[(never, never)] * count]
    cuts: list[list[int]] = []
    for run in range(1, parts + 1):
        following: list[tuple[float, float]] = [(never, never)] * (count + 1)
        chosen = [0] * (count + 1)
        for end in range(1, count + 1):
            cost = never
            for cut in range(end if run <= end else 0):
                weight = total[end] - total[cut]
                heaviest, lightest = max(best[cut][0], weight), min(best[cut][1], weight)
                spread = heaviest - lightest if heaviest != never else never
                if cost >= spread:
                    cost, following[end], chosen[end] = spread, (heaviest, lightest), cut
        best = following
        cuts.append(chosen)
    bounds = [count]
    for chosen in reversed(cuts):
        bounds.append(chosen[bounds[-1]])
    return bounds[::-1]


def probed_bounds(weights: Sequence[int], parts: int) -> list[int]:
    """``partition_balanced`` before 0.12.5: a bisection for the smallest heaviest run, each run filled greedily."""
    count = len(weights)
    if count <= parts:
        return uniform_bounds(count, parts)
    sums = list(accumulate(weights))
    tolerance = 1e-3
    low, high = sums[-1] / parts, float(sums[-1])
    while high > low + tolerance:
        middle = low + (high - low) / 2
        if _fill(sums, parts, middle)[1]:
            high = middle
        else:
            low = middle + tolerance
    return _fill(sums, parts, high)[0]


def _fill(sums: Sequence[int], parts: int, heaviest: float) -> tuple[list[int], bool]:
    """Bounds when each run takes items up to ``heaviest``, and whether all items fit."""
    count = len(sums)
    chunk = count // parts
    bounds = [0] + [count] * parts
    target, reach = heaviest, chunk
    for part in range(1, parts):
        while reach < count and sums[reach] < target:
            reach += chunk
        bounds[part] = bisect_left(sums, target, lo=reach - chunk, hi=min(reach, count))
        if bounds[part] == count:
            return bounds, sums[-1] - sums[bounds[part - 1]] < heaviest
        target = sums[bounds[part] - 1] + heaviest
    return bounds, target >= sums[-1]
