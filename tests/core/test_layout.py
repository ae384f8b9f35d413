"""Which stage owns which layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.core.errors import UsageError
from streamconv.core.layout import FIRST_RANK, ParallelLayout, RankCoordinates, even_stages


@pytest.mark.parametrize(
    ("layers", "pp", "stages"),
    [
        (4, 1, (4,)),
        (4, 2, (2, 2)),
        (7, 3, (3, 2, 2)),
        (10, 4, (3, 3, 2, 2)),
        (70, 12, (*[6] * 10, 5, 5)),
        (2, 3, (1, 1, 0)),
        (0, 2, (0, 0)),
    ],
)
def test_the_first_stages_hold_one_more(layers: int, pp: int, stages: tuple[int, ...]) -> None:
    assert even_stages(layers, pp) == stages


@given(st.integers(0, 500), st.integers(1, 64))
def test_even_stages_differ_by_one_at_most(layers: int, pp: int) -> None:
    stages = even_stages(layers, pp)
    assert (len(stages), sum(stages)) == (pp, layers)
    assert max(stages) - min(stages) <= 1
    assert list(stages) == sorted(stages, reverse=True)


@given(st.integers(1, 8), st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_stages_own_all_layers_in_order_and_none_twice(tp: int, stages: list[int]) -> None:
    layout = ParallelLayout(tp, tuple(stages))
    assert (layout.pp, layout.num_layers) == (len(stages), sum(stages))
    owned = [layer for stage in range(layout.pp) for layer in layout.layers_of(stage)]
    assert owned == list(range(layout.num_layers))
    assert [len(layout.layers_of(stage)) for stage in range(layout.pp)] == stages


def test_a_stage_that_is_not_there_owns_nothing_that_can_be_asked_for() -> None:
    with pytest.raises(IndexError):
        ParallelLayout(1, (2, 2)).layers_of(2)


@pytest.mark.parametrize("tp", [0, -1])
def test_a_tensor_parallel_size_below_one_is_refused(tp: int) -> None:
    with pytest.raises(UsageError, match=f"tensor parallel size {tp}"):
        ParallelLayout(tp, (1,))


@pytest.mark.parametrize("stages", [(), (-1,), (2, -1, 3)])
def test_stages_without_a_number_of_layers_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="pipeline stages"):
        ParallelLayout(1, stages)


def test_a_layout_is_written_short_where_its_stages_are_equal() -> None:
    assert str(ParallelLayout(4, (6, 6))) == "TP 4 x PP 2 (6 layers a stage)"
    assert str(ParallelLayout(2, (5, 6, 5))) == "TP 2 x PP 3 (stages of 5,6,5 layers)"


def test_layouts_of_the_same_sizes_are_the_same() -> None:
    assert ParallelLayout(2, (3, 2)) == ParallelLayout(2, (3, 2))
    assert len({ParallelLayout(2, (3, 2)), ParallelLayout(2, (3, 2)), ParallelLayout(2, (2, 3))}) == 2


def test_ranks_are_all_stages_of_each_tensor_parallel_rank() -> None:
    ranks = list(ParallelLayout(2, (1, 1, 1)).ranks())
    assert ranks == [RankCoordinates(tp, pp) for tp, pp in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))]
    assert ranks[0] == FIRST_RANK == RankCoordinates(tp=0, pp=0, ep=0, etp=0)


def test_expert_parallel_sizes_are_shown_where_there_are_some() -> None:
    assert str(ParallelLayout(2, (2, 2))) == "TP 2 x PP 2 (2 layers a stage)"
    assert str(ParallelLayout(2, (2, 2), ep=4)) == "TP 2 x PP 2 x EP 4 (2 layers a stage)"
    assert str(ParallelLayout(4, (4,), ep=2, etp=2)) == "TP 4 x PP 1 x EP 2 (expert TP 2) (4 layers a stage)"


@pytest.mark.parametrize(("sizes", "what"), [({"ep": 0}, "expert parallel size 0"), ({"etp": -1}, "expert tensor")])
def test_an_expert_parallel_size_is_at_least_1(sizes: dict[str, int], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ParallelLayout(1, (1,), **sizes)
