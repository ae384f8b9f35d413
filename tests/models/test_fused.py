"""A parameter that is cut over ranks and put together again is the same, and each rank has what the layouts say.

Every element has a number of its own. What a rank must have is computed by numpy, row by row, from the definitions in
``models/orders.py``, by no code of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streamconv.core.lazy import LazyTensor
from streamconv.models.family import ModelFamily
from streamconv.models.fused import gather, part_of, shard
from streamconv.models.orders import GluOrder, QkvLayout, RowOrders
from streamconv.models.parameter import GLU, QKV, ModelSizes, Parameter
from streamconv.models.registry import known_families
from tests.stored import stored

Array = npt.NDArray[np.float32]
FAMILIES = known_families()
MOST_RANKS = 6
STEP = 60
"""Between two numbers: each of up to six ranks can have its share of a number without rounding."""
ROOM = 1 << 16


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> LazyTensor:
    """A stored vector of the numbers from which all tensors are taken."""
    values = STEP * torch.arange(ROOM, dtype=torch.float32)
    (lazy,) = stored(tmp_path_factory.mktemp("numbers") / "t.pt", values)
    return lazy


@dataclass(frozen=True)
class Cut:
    """Over how many ranks a model is cut, the sizes that allow it, and the orders of rows."""

    tp: int
    sizes: ModelSizes
    orders: RowOrders

    @property
    def whole_groups(self) -> bool:
        """Whether each rank has whole groups of heads, not a slice of the rows of all."""
        return self.sizes.groups is not None and self.sizes.groups % self.tp == 0


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """Ranks that divide the groups of heads, and ranks that do not."""
    tp = draw(st.integers(1, MOST_RANKS))
    groups = draw(st.sampled_from([tp, 2 * tp, *(n for n in range(1, 2 * MOST_RANKS) if n % tp)]))
    queries = draw(st.integers(1, 3))
    sizes = ModelSizes(
        num_layers=1,
        hidden=draw(st.integers(1, 3)),
        ffn=tp * draw(st.integers(1, 3)),
        vocab=tp * draw(st.integers(1, 3)),
        positions=draw(st.integers(1, 3)),
        heads=queries * groups,
        groups=groups,
        head_dim=draw(st.integers(1, 3)) * (tp if groups % tp else 1),
        gated=draw(st.booleans()),
    )
    return Cut(tp, sizes, RowOrders(draw(layouts(sizes, tp)), draw(st.sampled_from(GluOrder)), draw(st.booleans())))


def layouts(sizes: ModelSizes, tp: int) -> st.SearchStrategy[QkvLayout]:
    """Ranks that divide no groups have interleaved rows; heads that share a key do not alternate with it."""
    assert sizes.groups is not None
    if sizes.groups % tp:
        return st.just(QkvLayout.INTERLEAVED)
    if sizes.heads != sizes.groups:
        return st.sampled_from((QkvLayout.INTERLEAVED, QkvLayout.BLOCKS))
    return st.sampled_from(QkvLayout)


def canonical_shapes(parameter: Parameter, sizes: ModelSizes) -> list[tuple[int, ...]]:
    """The shapes of the whole tensors: query, key and value by group, gate and up by themselves."""
    rest = sizes.shape_of(parameter)[1:]
    if parameter.parts == QKV:
        assert sizes.groups is not None
        return [(sizes.groups, rows, *rest) for rows in sizes.group_rows]
    if parameter.parts == GLU:
        return [(sizes.ffn, *rest)] * 2
    return [sizes.shape_of(parameter)]


def whole_tensors(shapes: Sequence[tuple[int, ...]], numbers: LazyTensor) -> tuple[list[Array], list[LazyTensor]]:
    """Tensors of these shapes, one behind the other in the numbers: as arrays, and lazily."""
    arrays, lazy, first = [], [], 0
    for shape in shapes:
        last = first + prod(shape)
        assert last <= ROOM
        arrays.append(STEP * np.arange(first, last, dtype=np.float32).reshape(shape))
        tensor = numbers.slice(0, first, last)
        for dim in range(len(shape) - 1):
            tensor = tensor.unflatten(dim, shape[dim], prod(shape[dim + 1 :]))
        lazy.append(tensor)
        first = last
    return arrays, lazy


# -- what a rank must have ---------------------------------------------------------------------------------------------


def rank_has(parameter: Parameter, whole: Sequence[Array], rank: int, cut: Cut) -> Array:
    """By the definitions: of rows, of heads, of halves, of shares."""
    if parameter.parts == QKV:
        return heads_of_rank(whole, rank, cut)
    if parameter.parts == GLU:
        gate, up = (np.split(half, cut.tp)[rank] for half in whole)
        return np.concatenate([gate, up] if cut.orders.glu is GluOrder.GATE_UP else [up, gate])
    (tensor,) = whole
    if parameter.axis is not None:
        return np.split(tensor, cut.tp, parameter.axis)[rank]
    return tensor / np.float32(cut.tp) if parameter.summed and cut.orders.shares else tensor


def heads_of_rank(whole: Sequence[Array], rank: int, cut: Cut) -> Array:
    """One row after the other, in the order that the layout gives them."""
    query, key, value = whole
    if not cut.whole_groups:
        return np.split(np.stack(interleaved(whole, range(len(key)))), cut.tp)[rank]
    count = len(key) // cut.tp
    groups = range(rank * count, (rank + 1) * count)
    if cut.orders.qkv is QkvLayout.INTERLEAVED:
        return np.stack(interleaved(whole, groups))
    if cut.orders.qkv is QkvLayout.BLOCKS:
        return np.stack([row for part in whole for group in groups for row in part[group]])
    return np.stack([part[group][n] for group in groups for n in range(query.shape[1]) for part in (query, key, value)])


def interleaved(whole: Sequence[Array], groups: range) -> list[Any]:
    """Of each group its queries, its key, its value."""
    return [row for group in groups for part in whole for row in part[group]]


# -- the property ------------------------------------------------------------------------------------------------------

EVEN = ModelSizes(1, 2, 4, 4, 2, 4, 4, 2, gated=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=cuts())
@example(cut=Cut(2, EVEN, RowOrders(QkvLayout.ALTERNATING, GluOrder.UP_GATE, shares=True)))
@example(cut=Cut(4, replace(EVEN, groups=2, head_dim=4), RowOrders()))
@example(cut=Cut(2, replace(EVEN, heads=8), RowOrders(QkvLayout.BLOCKS)))
def test_what_is_cut_and_gathered_is_the_same_and_each_rank_has_its_rows(
    family: ModelFamily, cut: Cut, numbers: LazyTensor, tmp_path: Path
) -> None:
    cut = replace(cut, sizes=replace(cut.sizes, gated=family.gated))
    for parameter in family.parameters:
        arrays, whole = whole_tensors(canonical_shapes(parameter, cut.sizes), numbers)
        is_shared = parameter.summed and cut.orders.shares
        shards = [shard(parameter, whole, cut.tp, rank, cut.orders) for rank in range(cut.tp)]
        for rank, mine in enumerate(shards):
            expected = rank_has(parameter, arrays, rank, cut)
            assert mine.shape == expected.shape, (parameter, rank)
            assert np.array_equal(mine.numpy(), expected), (parameter, rank)
        if is_shared:  # what is summed is what ranks have stored
            shards = stored(tmp_path / "shares.pt", *(torch.from_numpy(mine.numpy()) for mine in shards))
        held = shards if parameter.axis is not None or is_shared else shards[:1]
        again = gather(parameter, held, cut.sizes, cut.orders)
        assert [tensor.shape for tensor in again] == [array.shape for array in arrays], parameter
        for tensor, array in zip(again, arrays, strict=True):
            assert np.array_equal(tensor.numpy(), array), parameter


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=cuts().filter(lambda cut: cut.whole_groups))
def test_a_part_by_itself_is_a_ranks_rows_of_it(family: ModelFamily, cut: Cut, numbers: LazyTensor) -> None:
    cut = replace(cut, sizes=replace(cut.sizes, gated=family.gated))
    for parameter in (parameter for parameter in family.parameters if parameter.parts):
        arrays, whole = whole_tensors(canonical_shapes(parameter, cut.sizes), numbers)
        for name, array in zip(parameter.parts, arrays, strict=True):
            flat = array if parameter.is_glu else array.reshape(-1, *array.shape[2:])
            for rank, expected in enumerate(np.split(flat, cut.tp)):
                assert np.array_equal(part_of(parameter, whole, name, cut.tp, rank).numpy(), expected)


def test_without_the_number_of_heads_rows_are_joined_as_they_stand(numbers: LazyTensor) -> None:
    unknown = replace(EVEN, heads=None, groups=None, head_dim=None)
    for parameter in (p for family in FAMILIES for p in family.parameters if p.parts == QKV):
        shape = (6, *EVEN.shape_of(parameter)[1:])
        arrays, shards = whole_tensors([shape, shape], numbers)
        (whole,) = gather(parameter, shards, unknown, RowOrders())
        assert np.array_equal(whole.numpy(), np.concatenate(arrays))


def test_every_kind_of_parameter_is_among_the_families() -> None:
    rows = [parameter for family in FAMILIES for parameter in family.parameters]
    assert {parameter.parts for parameter in rows} == {(), QKV, GLU}
    assert {parameter.axis for parameter in rows} == {None, 0, 1}
    assert any(parameter.summed for parameter in rows)
