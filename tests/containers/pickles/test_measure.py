"""What a pickle's value comes to is found before anything walks through it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from streamconv.containers.pickles.measure import check_effort
from streamconv.containers.pickles.reader import Global, Record, loads
from streamconv.core.effort import DEEPEST, Effort
from streamconv.core.errors import UnsafeError


def refused(tree: Any, metadata: int = 1000) -> str:
    with pytest.raises(UnsafeError) as caught:
        check_effort(tree, Effort("a.pkl", metadata))
    return caught.value.what


def in_one_another(leaf: Any, width: int, depth: int) -> Any:
    for _ in range(depth):
        leaf = [leaf] * width
    return leaf


def test_values_count_as_often_as_they_are_held() -> None:
    effort = Effort("a.pkl", 1000)
    width = 100
    most = effort.values // (width + 1)  # a list and what is in it
    shared = [None] * width
    check_effort([shared] * (most - 1), effort)
    assert refused([shared] * (most + 1)).startswith(f"{(most + 1) * (width + 1) + 1} values in 1000 bytes")


def test_a_million_values_are_no_fault_of_a_file_that_has_them() -> None:
    tree = [list(range(1000)) for _ in range(1000)]
    assert loads(pickle.dumps(tree, 2), "a.pkl") == tree
    assert refused([list(range(1000))] * 1000).startswith("1001001 values")


def test_text_counts_as_often_as_it_is_held_and_a_name_with_each_line_below_it() -> None:
    text = "t" * 100_000
    check_effort([text] * 40, Effort("a.pkl", 1000))
    assert "characters" in refused([text] * 43)
    assert "characters" in refused({text: {str(n): n for n in range(43)}})
    assert "characters" in refused(Record(Global("m" * 100_000, "n"), (), dict.fromkeys(range(43), Global(text, "n"))))


def test_objects_and_keys_are_walked_into() -> None:
    laughs = in_one_another(1, 16, 10)
    for tree in (
        Record(Global("a", "b"), (laughs,)),
        Record(Global("a", "b"), (), laughs),
        {Record(Global("a", "b"), (laughs,)): 1},
    ):
        assert "values" in refused(tree)


def test_depth_counts_along_the_longest_way() -> None:
    below = in_one_another(1, 1, DEEPEST // 2)
    # Met first at the top, and again far below.
    tree = [below, in_one_another(below, 1, DEEPEST // 2)]
    assert "nested deeper" in refused(tree)
    check_effort(in_one_another(1, 1, DEEPEST), Effort("a.pkl", 1000))


def test_a_value_that_holds_itself_gets_an_ellipsis() -> None:
    row: list[Any] = [1]
    table: dict[str, Any] = {"a": row}
    record = Record(Global("a", "B"), (row,), {"me": None}, [table])
    row.append(record)
    table["t"] = table
    record.state["me"] = record
    check_effort(record, Effort("a.pkl", 1000))
    assert (row, table, record.state) == ([1, ...], {"a": row, "t": ...}, {"me": ...})


def test_a_tuple_that_holds_itself_is_refused() -> None:
    row: list[Any] = []
    row.append((row,))
    assert refused(row) == "a tuple that holds itself"


def test_tables_by_number_are_no_fault() -> None:
    """A tokenizer's counts, or an optimizer's state: their keys are as short in a name as in the pickle."""
    counts = {number: number * 7 for number in range(100_000)}
    state = {"state": {number: {"step": 1, "exp_avg": [0.5, 0.25]} for number in range(20_000)}}
    for tree in (counts, state):
        assert loads(pickle.dumps(tree, 2), "a.pkl") == tree
