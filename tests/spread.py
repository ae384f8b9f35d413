"""How many cases of a sweep a run takes: all, a spread sample, or a few.

A sweep looks at every one of many like cases: each step a run can be killed before, each byte of a header, each cell of
a table. ``make test-all`` takes all of them. ``make test`` takes the first, the last and every k-th between, with the k
that the test itself names. ``make check`` takes the first, the middle and the last, of every table of cases.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

Cases = Literal["few", "spread", "all"]
CASES: tuple[Cases, ...] = get_args(Cases)
FEW = 3

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Chooses among like cases; what is chosen keeps its order."""

    cases: Cases

    def of(self, items: Sequence[T], step: int) -> list[T]:
        """All of ``items``, or the first, the last and every ``step``-th, or :data:`FEW` of them."""
        last = len(items) - 1
        if self.cases == "all" or last < FEW:
            return list(items)
        chosen = {0, last // 2, last} if self.cases == "few" else {*range(0, last, step), last}
        return [items[index] for index in sorted(chosen)]

    def of_tables(self, tables: Mapping[K, Sequence[T]], steps: Mapping[K, int]) -> list[T]:
        """The chosen rows of each table. ``steps`` names the tables that are sweeps; of the others a spread takes all."""
        return [
            row
            for name, rows in tables.items()
            for row in (self.of(rows, steps.get(name, 1)) if self.cases == "few" or name in steps else rows)
        ]
