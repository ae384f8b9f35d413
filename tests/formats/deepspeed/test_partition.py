"""Stages as DeepSpeed gave them out, before and since each change of its arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.formats.deepspeed.partition import (
    PipelineModules,
    Version,
    balanced_bounds,
    even_bounds,
    probed_bounds,
    stages_by_method,
    uniform_bounds,
)

BALANCED = (0, 12, 5)
UNIFORM = (0, 10, 1)
OLDEST, NEWEST = (0, 4, 2), (0, 17, 0)
LAYER = "ParallelTransformerLayerPipe"


def model(layers: int, *, numel: int = 100, embedding: int = 50) -> PipelineModules:
    """A GPT's or BLOOM's modules: casts, embedding, ``layers`` layers, norm, tied head."""
    names = ("_to_float16", "EmbeddingPipe", "<lambda>", *[LAYER] * layers)
    names += ("undo", "MixedFusedLayerNorm", "EmbeddingPipe", "float16_to_fp32")
    numels = (0, embedding, 0, *[numel] * layers, 0, 2, embedding, 0)
    return PipelineModules(names, numels, 3, layers)


BLOOM = model(70)
BLOOM_BOUNDS = [0, 8, 14, 20, 26, 32, 38, 44, 50, 56, 62, 68, 77]
BLOOM_STAGES = (5, *[6] * 10, 5)


def runs(weights: Sequence[int], bounds: Sequence[int]) -> list[int]:
    return [sum(weights[a:b]) for a, b in pairwise(bounds)]


# -- a type: only the modules that it names weigh --------------------------------------------------------------------


def test_bloom_176b_has_the_embeddings_in_its_outer_stages() -> None:
    assert len(BLOOM.names) == 77
    weights = [int("Transformer" in name or "Embedding" in name) for name in BLOOM.names]
    assert sum(weights) == 72
    assert probed_bounds(weights, 12) == BLOOM_BOUNDS
    assert balanced_bounds(weights, 12) == BLOOM_BOUNDS


@pytest.mark.parametrize("version", [None, OLDEST, (0, 12, 4), BALANCED, NEWEST])
def test_bloom_176b_has_the_same_stages_in_any_version(version: Version | None) -> None:
    assert stages_by_method(BLOOM, "type:transformer|embedding", 12, version) == BLOOM_STAGES


@pytest.mark.parametrize(
    ("layers", "pp", "before", "since"),
    [
        (7, 3, (3, 3, 1), (3, 2, 2)),
        (10, 4, (3, 3, 3, 1), (3, 3, 2, 2)),
        (5, 4, (2, 2, 1, 0), (2, 1, 1, 1)),
        (70, 12, (*[6] * 11, 4), (*[6] * 10, 5, 5)),
    ],
)
def test_uneven_layers_differ_by_version(layers: int, pp: int, before: tuple[int, ...], since: tuple[int, ...]) -> None:
    modules = model(layers)
    earlier: list[Version] = [OLDEST, (0, 10, 1), (0, 12, 4)]
    for version in earlier:
        assert stages_by_method(modules, "type:transformer", pp, version) == before
    later: list[Version] = [BALANCED, (0, 12, 6), (0, 14, 0), NEWEST, (1, 0)]
    for version in later:
        assert stages_by_method(modules, "type:transformer", pp, version) == since
    assert stages_by_method(modules, "type:transformer", pp, None) is None


@pytest.mark.parametrize("pp", range(1, 7))
@pytest.mark.parametrize("method", ["type:transformer", "type:transformer|embedding", "parameters", "uniform"])
def test_an_unknown_version_gives_stages_exactly_where_all_versions_agree(method: str, pp: int) -> None:
    for layers in range(1, 25):
        modules = model(layers)
        known = {stages_by_method(modules, method, pp, version) for version in (OLDEST, NEWEST)}
        assert None not in known
        assert stages_by_method(modules, method, pp, None) == (known.pop() if len(known) == 1 else None)


@pytest.mark.parametrize(
    "method", ["type:transformer", "type:Transformer", "TYPE:TRANSFORMER", "Type:transFormerLayer"]
)
def test_a_type_is_a_pattern_in_any_case(method: str) -> None:
    assert stages_by_method(model(12), method, 3, NEWEST) == (4, 4, 4)


# -- uniform ---------------------------------------------------------------------------------------------------------


def test_what_is_left_over_went_to_the_last_stage_before_0_10_1() -> None:
    modules = model(4)
    assert len(modules.names) == 11
    assert even_bounds(11, 3) == [0, 3, 6, 11]
    assert uniform_bounds(11, 3) == [0, 4, 8, 11]
    assert stages_by_method(modules, "uniform", 3, (0, 10, 0)) == (0, 3, 1)
    assert stages_by_method(modules, "uniform", 3, UNIFORM) == (1, 3, 0)
    assert stages_by_method(modules, "uniform", 3, None) is None
    assert stages_by_method(modules, "Uniform", 3, UNIFORM) == (1, 3, 0)


def test_modules_that_divide_evenly_need_no_version() -> None:
    assert stages_by_method(model(5), "uniform", 4, None) == (0, 3, 2, 0)


@given(st.integers(0, 60), st.integers(1, 20))
def test_uniform_runs_differ_by_one_at_most(count: int, parts: int) -> None:
    lengths = [b - a for a, b in pairwise(uniform_bounds(count, parts))]
    assert len(lengths) == parts
    assert sum(lengths) == count
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
    assert even_bounds(count, parts)[0] == 0
    assert even_bounds(count, parts)[-1] == count
    if count % parts == 0:
        assert even_bounds(count, parts) == uniform_bounds(count, parts)


# -- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_weigh_modules_by_their_size() -> None:
    modules = model(6, numel=100, embedding=300)
    for version in (OLDEST, NEWEST):
        assert stages_by_method(modules, "parameters", 2, version) == (3, 3)
    heavy = PipelineModules(("EmbeddingPipe", *[LAYER] * 4), (400, 100, 100, 100, 100), 1, 4)
    assert stages_by_method(heavy, "parameters", 2, None) == (0, 4)


def test_parameters_change_with_the_same_version_as_types() -> None:
    modules = PipelineModules((LAYER,) * 7, (10,) * 7, 0, 7)
    assert stages_by_method(modules, "parameters", 3, (0, 12, 4)) == (3, 3, 1)
    assert stages_by_method(modules, "parameters", 3, BALANCED) == (3, 2, 2)
    assert stages_by_method(modules, "parameters", 3, None) is None


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["profile", "", "best", "type", "transformer"])
@pytest.mark.parametrize("version", [None, OLDEST, NEWEST])
def test_a_method_that_is_unknown_gives_no_stages(method: str, version: Version | None) -> None:
    assert stages_by_method(model(4), method, 2, version) is None


@pytest.mark.parametrize("method", ["uniform", "parameters", "type:transformer", "type:layer|embedding"])
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@settings(max_examples=40)
@given(layers=st.integers(1, 24), pp=st.integers(1, 9), embedding=st.integers(0, 500))
def test_every_layer_has_one_stage(method: str, version: Version, layers: int, pp: int, embedding: int) -> None:
    stages = stages_by_method(model(layers, embedding=embedding), method, pp, version)
    assert stages is not None
    assert len(stages) == pp
    assert min(stages) >= 0
    assert sum(stages) == layers


WEIGHTS = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(WEIGHTS, st.integers(1, 5))
def test_balanced_runs_follow_one_another_and_hold_everything(weights: list[int], parts: int) -> None:
    bounds = balanced_bounds(weights, parts)
    assert len(bounds) == parts + 1
    assert (bounds[0], bounds[-1]) == (0, len(weights))
    assert bounds == sorted(bounds)
    assert sum(runs(weights, bounds)) == sum(weights)


@given(st.integers(1, 4), st.integers(1, 10), st.integers(1, 9))
def test_equal_modules_differ_by_one_at_most_when_balanced(parts: int, more: int, weight: int) -> None:
    lengths = [b - a for a, b in pairwise(balanced_bounds([weight] * (parts + more), parts))]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def spread(weights: Sequence[int], bounds: Sequence[int]) -> int:
    sums = runs(weights, bounds)
    return max(sums) - min(sums)


@pytest.mark.parametrize("parts", range(2, 6))
def test_no_other_cuts_balance_modules_of_a_type_better(parts: int) -> None:
    for count in range(parts + 1, 10):
        choices = [[0, *cuts, count] for cuts in combinations(range(1, count), parts - 1)]
        for weights in product((0, 1), repeat=count):
            best = min(spread(weights, bounds) for bounds in choices)
            assert spread(weights, balanced_bounds(weights, parts)) == best, weights


def test_balanced_runs_are_deepspeeds_even_where_other_cuts_balance_better() -> None:
    weights = [4, 73, 8, 7, 83]  # DeepSpeed cuts these so: its programme keeps one prefix of each length
    assert balanced_bounds(weights, 4) == [0, 1, 2, 4, 5]
    assert spread(weights, [0, 1, 2, 4, 5]) == 79
    assert min(spread(weights, [0, *cuts, 5]) for cuts in combinations(range(1, 5), 3)) == 76


@pytest.mark.parametrize("method", ["type:((.+)+)+x", "type:(", "type:(?:.?){30}y", "type:[a-z]+q"])
def test_a_pattern_that_could_take_years_is_not_tried(method: str) -> None:
    assert stages_by_method(BLOOM, method, 12, NEWEST) is None
    assert stages_by_method(BLOOM, "type:transformer|embedding", 12, NEWEST) == BLOOM_STAGES
