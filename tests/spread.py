"""How many cases of a sweep a run takes: all, a spread sample, or a few.

A sweep looks at every one of many like cases: each step a run can be killed before, each byte of a header, each cell of
a table. ``make test-all`` takes all of them. ``make test`` takes the first, the last and every k-th between, with the k
that the test itself names. ``make check`` takes about three of every table of cases: the ends and the middle.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

Cases = Literal["few", "spread", "all"]
CASES: tuple[Cases, ...] = get_args(Cases)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Chooses among like cases; what is chosen keeps its order."""

    cases: Cases

    def of(self, items: Sequence[T], step: int) -> list[T]:
        """All of ``items`` if all cases are asked for, else the first, the last and every ``step``-th between."""
        return list(items) if self.cases == "all" else _every(items, step)

    def of_tables(self, tables: Mapping[K, Sequence[T]], steps: Mapping[K, int]) -> list[T]:
        """The chosen rows of each table; ``steps`` names those that are sweeps, of the others only a few leaves out."""
        chosen: list[T] = []
        for name, rows in tables.items():
            if self.cases == "few":
                chosen += _every(rows, max(1, len(rows) // 2))
            else:
                chosen += self.of(rows, steps.get(name, 1))
        return chosen


def _every(items: Sequence[T], step: int) -> list[T]:
    last = len(items) - 1
    return [items[index] for index in sorted({*range(0, last, step), last} - {-1})]
