"""What the values of a tensor are like, and which tensors stand out among their like."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Moments", "Statistics", "flags_of", "joined", "together"]

# A layer stands out if its root mean square is so many robust standard deviations, and at least so many times, off.
_DEVIATIONS, _TIMES = 8.0, 3.0
_FEWEST_LAYERS = 4


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a tensor's finite elements: least, most, mean, standard deviation (of the whole population) and L2 norm, None
    where there are none. Of all elements: how many are zero, NaN, infinite.
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
    """Of a part of a tensor, what can be joined: counts, extremes, the mean, the sum of squared distances from it."""

    numel: int = 0
    finite: int = 0
    zeros: int = 0
    nan: int = 0
    least: float = math.inf
    most: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0

    def join(self, other: Moments) -> None:
        """Add what another part has: Chan, Golub and LeVeque's update, which loses no digits to cancellation."""
        total = self.finite + other.finite
        if other.finite:
            apart = other.mean - self.mean
            self.squares += other.squares + apart * apart * self.finite * other.finite / total
            self.mean += apart * other.finite / total
        self.numel, self.finite = self.numel + other.numel, total
        self.zeros, self.nan = self.zeros + other.zeros, self.nan + other.nan
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def result(self) -> Statistics:
        """The statistics of all that was joined."""
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


def _moments_of(one: Statistics) -> Moments:
    finite = one.numel - one.nan - one.inf
    if one.least is None or one.most is None or one.mean is None or one.std is None:
        return Moments(numel=one.numel, zeros=one.zeros, nan=one.nan)
    return Moments(
        one.numel, finite, one.zeros, one.nan, one.least, one.most, one.mean, one.std * one.std * finite
    )  # fmt: skip


def flags_of(found: Mapping[str, Statistics], kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """What is wrong or unusual about tensors, in words, by name.

    A NaN and an infinity always are. Beyond that a tensor is compared with its like: the same parameter in the other
    layers. One that is all zeros, or whose root mean square is far from theirs, stands out.

    Args:
        found: the statistics.
        kinds: the parameter that a tensor is, without its layer; a tensor that is not there is like no other.
    """
    flags: dict[str, list[str]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, one in found.items():
        groups[kinds.get(name, name)].append(name)
        if one.nan:
            flags[name].append(f"{one.nan} NaN")
        if one.inf:
            flags[name].append(f"{one.inf} infinite")
    for names in groups.values():
        for name, words in _unlike({name: found[name] for name in names}):
            flags[name].append(words)
    return dict(flags)


def _unlike(group: Mapping[str, Statistics]) -> Iterator[tuple[str, str]]:
    sizes = {name: one.rms for name, one in group.items() if one.rms is not None}
    nonzero = {name: math.log(size) for name, size in sizes.items() if size > 0}
    if nonzero and len(group) > 1:
        yield from ((name, "all zeros, unlike the other layers") for name, size in sizes.items() if size == 0)
    if len(nonzero) < _FEWEST_LAYERS:
        return
    from statistics import median  # here: what only shows metadata does without

    middle = median(nonzero.values())
    spread = 1.4826 * median(abs(size - middle) for size in nonzero.values())
    for name, size in nonzero.items():
        apart = abs(size - middle)
        if apart > max(_DEVIATIONS * spread, math.log(_TIMES)):
            times = math.exp(min(size - middle, 700.0))
            yield name, f"root mean square is {times:.3g} times the median of its like"
