"""Statistics of the values of tensors, and which layers stand out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Moments", "Statistics", "flags_of", "joined", "together"]

# A layer stands out if its root mean square is off by so many robust standard deviations and by this factor.
_DEVIATIONS, _TIMES = 8.0, 3.0
_FEWEST_LAYERS = 4


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a tensor.

    The least, most, mean, standard deviation (of the whole population) and L2 norm are those of the finite elements,
    None if there are none. The numbers of zeros, NaNs and infinities are those of all elements.
    """

    numel: int
    least: float | None
    most: float | None
    mean: float | None
    std: float | None
    norm: float | None
    zeros: int
    nan: int
    inf: int

    @property
    def rms(self) -> float | None:
        """The root mean square of the finite elements."""
        finite = self.numel - self.nan - self.inf
        return None if self.norm is None or not finite else self.norm / math.sqrt(finite)


@dataclass(slots=True)
class Moments:
    """Statistics of a part of a tensor that can be joined: counts, extremes, mean, sum of squared distances from it."""

    numel: int = 0
    finite: int = 0
    zeros: int = 0
    nan: int = 0
    least: float = math.inf
    most: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0

    def join(self, other: Moments) -> None:
        """Add another part's moments, by Chan, Golub and LeVeque's update, which loses no digits to cancellation."""
        total = self.finite + other.finite
        if other.finite:
            shift = other.mean - self.mean
            self.squares += other.squares + shift * shift * self.finite * other.finite / total
            self.mean += shift * other.finite / total
        self.numel, self.finite = self.numel + other.numel, total
        self.zeros, self.nan = self.zeros + other.zeros, self.nan + other.nan
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def result(self) -> Statistics:
        """The statistics of all joined parts."""
        inf = self.numel - self.finite - self.nan
        if not self.finite:
            return Statistics(self.numel, None, None, None, None, None, self.zeros, self.nan, inf)
        deviation = math.sqrt(self.squares / self.finite)
        norm = math.sqrt(self.squares + self.mean * self.mean * self.finite)
        return Statistics(
            self.numel, self.least, self.most, self.mean, deviation, norm, self.zeros, self.nan, inf
        )  # fmt: skip


def together(found: Iterable[Moments]) -> Moments:
    """The moments of several parts taken together."""
    whole = Moments()
    for part in found:
        whole.join(part)
    return whole


def joined(found: Iterable[Statistics]) -> Statistics:
    """The statistics of several tensors' elements taken together."""
    return together(map(_moments_of, found)).result()


def _moments_of(known: Statistics) -> Moments:
    finite = known.numel - known.nan - known.inf
    if known.least is None or known.most is None or known.mean is None or known.std is None:
        return Moments(numel=known.numel, zeros=known.zeros, nan=known.nan)
    return Moments(
        known.numel, finite, known.zeros, known.nan, known.least, known.most, known.mean, known.std * known.std * finite
    )


def flags_of(found: Mapping[str, Statistics], kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """Messages about wrong or unusual values, by the tensor's name.

    NaNs and infinities are always reported. Besides, a tensor is compared with the same parameter in the other layers:
    it is reported if it is all zeros, or if its root mean square is far from theirs.

    Args:
        found: the statistics of each tensor by its name.
        kinds: the parameter that each tensor is, without its layer; a tensor without an entry is compared with none.
    """
    flags: dict[str, list[str]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, statistics in found.items():
        groups[kinds.get(name, name)].append(name)
        if statistics.nan:
            flags[name].append(f"{statistics.nan} NaN")
        if statistics.inf:
            flags[name].append(f"{statistics.inf} infinite")
    for names in groups.values():
        for name, words in _unlike({name: found[name] for name in names}):
            flags[name].append(words)
    return dict(flags)


def _unlike(group: Mapping[str, Statistics]) -> Iterator[tuple[str, str]]:
    sizes = {name: known.rms for name, known in group.items() if known.rms is not None}
    nonzero = {name: math.log(size) for name, size in sizes.items() if size > 0}
    if nonzero and len(group) > 1:
        yield from ((name, "all zeros, unlike the other layers") for name, size in sizes.items() if size == 0)
    if len(nonzero) < _FEWEST_LAYERS:
        return
    from statistics import median  # imported here: code that only shows metadata does not need it

    middle = median(nonzero.values())
    spread = 1.4826 * median(abs(size - middle) for size in nonzero.values())
    for name, size in nonzero.items():
        deviation = abs(size - middle)
        if deviation > max(_DEVIATIONS * spread, math.log(_TIMES)):
            times = math.exp(min(size - middle, 700.0))
            yield name, f"root mean square is {times:.3g} times the median of its like"
