"""The stages and chunks are those of Megatron-Core, and what it refuses has no layout."""

from __future__ import annotations

import pytest

from streamconv.core.errors import UsageError
from streamconv.core.layout import ParallelLayout, even_stages
from tests.formats.megatron.core.real.layers import Case, real_layers, real_layers_of
from tests.formats.megatron.core.real.needed import MEGATRON_CORE

pytestmark = MEGATRON_CORE

LAYERS = 12
EVEN: list[Case] = [
    {"num_layers": LAYERS, "pp": pp, "vpp": vpp} for pp in (1, 2, 3) for vpp in (1, 2, 3) if vpp == 1 or pp > 1
]
# Layers on the first and the last stage; None where Megatron shares out.
UNEVEN: list[Case] = [
    {"num_layers": LAYERS, "pp": pp, "vpp": vpp, "first": first, "last": last}
    for first, last in ((2, None), (None, 2), (2, 4), (5, 5), (3, 3), (4, 8))
    for pp in (2, 3, 4)
    for vpp in (1, 2)
]


def stages_of(case: Case) -> tuple[int, ...]:
    """Layers per stage as the arguments say, the same number on every stage that they do not name."""
    named = {0: case.get("first"), case["pp"] - 1: case.get("last")}
    fixed = {stage: layers for stage, layers in named.items() if layers is not None}
    free = [stage for stage in range(case["pp"]) if stage not in fixed]
    shares = even_stages(case["num_layers"] - sum(fixed.values()), len(free)) if free else ()
    return tuple((fixed | dict(zip(free, shares, strict=True)))[stage] for stage in range(case["pp"]))


def our_layers(case: Case) -> list[list[range]]:
    layout = ParallelLayout(1, stages_of(case), case["vpp"])
    return [list(layout.chunks_of(stage)) for stage in range(case["pp"])]


def test_even_and_uneven_stages() -> None:
    cases = EVEN + UNEVEN
    placed = [(case, layers) for case, (layers, error) in zip(cases, real_layers_of(cases), strict=True) if not error]
    assert len(placed) >= 20
    assert {case["vpp"] for case, _ in placed} == {1, 2, 3}
    for case, answer in placed:
        assert our_layers(case) == answer, case
        assert sorted(layer for stage in answer for chunk in stage for layer in chunk) == list(range(LAYERS)), case


def test_what_megatron_refuses_because_chunks_would_differ() -> None:
    cases: list[Case] = [
        {"num_layers": 12, "pp": 3, "vpp": 2, "first": 2},  # five layers on each of the others
        {"num_layers": 12, "pp": 2, "vpp": 4},
        {"num_layers": 6, "pp": 2, "vpp": 2},
    ]
    for case, (layers, error) in zip(cases, real_layers_of(cases), strict=True):
        assert not layers, case
        assert "divisible" in error, case
        with pytest.raises(UsageError, match="do not divide"):
            our_layers(case)


@pytest.mark.parametrize(
    ("num_layers", "pp", "more", "stages"),
    [
        (
            10,
            3,
            {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True},
            (3, 4, 3),
        ),
        (11, 3, {"account_for_embedding_in_pipeline_split": True}, (3, 4, 4)),
        (11, 3, {"account_for_loss_in_pipeline_split": True}, (4, 4, 3)),
    ],
)
def test_embedding_or_loss_counted_as_a_layer(
    num_layers: int, pp: int, more: dict[str, bool], stages: tuple[int, ...]
) -> None:
    answer = real_layers(num_layers, pp, **more)
    layout = ParallelLayout(1, stages)
    assert answer == [list(layout.chunks_of(stage)) for stage in range(pp)]


def test_with_virtual_stages_too_the_chunks_of_one_stage_differ() -> None:
    """No ``ParallelLayout`` says this: the first stage has one layer, and then two."""
    answer = real_layers(11, 3, 2, account_for_embedding_in_pipeline_split=True)
    assert answer == [[range(1), range(5, 7)], [range(1, 3), range(7, 9)], [range(3, 5), range(9, 11)]]
