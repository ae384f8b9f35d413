"""What is left out of a sweep is left out evenly, and nothing is left out when all is asked for."""

from __future__ import annotations

import pytest

from tests.spread import Cases, Sweep


def test_all_is_all() -> None:
    assert Sweep("all").of(range(100), 7) == list(range(100))


def test_a_spread_has_the_first_the_last_and_every_kth() -> None:
    assert Sweep("spread").of(range(20), 6) == [0, 6, 12, 18, 19]
    assert Sweep("spread").of(range(19), 6) == [0, 6, 12, 18]


@pytest.mark.parametrize("cases", ["few", "spread", "all"])
@pytest.mark.parametrize("length", range(3))
def test_of_two_none_is_left_out(length: int, cases: Cases) -> None:
    assert Sweep(cases).of(range(length), 50) == list(range(length))
    assert Sweep(cases).of_tables({"": range(length)}, {}) == list(range(length))


def test_a_table_that_is_no_sweep_is_thinned_only_to_a_few() -> None:
    tables = {"sweep": range(9), "table": range(10, 15)}
    assert Sweep("spread").of_tables(tables, {"sweep": 4}) == [0, 4, 8, 10, 11, 12, 13, 14]
    assert Sweep("few").of_tables(tables, {"sweep": 4}) == [0, 4, 8, 10, 12, 14]
    assert Sweep("all").of_tables(tables, {"sweep": 4}) == [*range(9), *range(10, 15)]
