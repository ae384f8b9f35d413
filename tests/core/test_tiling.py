"""Boxes that tile a tensor are told from boxes that lose or repeat an element, and the fault is named."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.core.tiling import Box, tiling_fault, whole_box


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[Box], tuple[int, ...]]:
    """A tensor cut along whole planes."""
    shape = draw(shapes())
    axes = []
    for size in shape:
        cuts = draw(st.sets(st.integers(1, size - 1), max_size=3)) if size > 1 else set()
        axes.append(list(pairwise([0, *sorted(cuts), size])))
    return draw(st.permutations(list(product(*axes)))), shape


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[list[Box], tuple[int, ...]]:
    """A tensor cut in two, and again and again, each part on its own."""
    shape = draw(shapes())
    boxes: list[Box] = [tuple((0, size) for size in shape)]
    for _ in range(draw(st.integers(0, 8))):
        index = draw(st.integers(0, len(boxes) - 1))
        axis = draw(st.integers(0, len(shape) - 1))
        start, stop = boxes[index][axis]
        if stop - start > 1:
            box, cut = boxes.pop(index), draw(st.integers(start + 1, stop - 1))
            boxes += [moved(box, axis, (start, cut)), moved(box, axis, (cut, stop))]
    return draw(st.permutations(boxes)), shape


def moved(box: Box, axis: int, run: tuple[int, int]) -> Box:
    return (*box[:axis], run, *box[axis + 1 :])


PARTITIONS = st.one_of(grids(), cuttings())


@given(PARTITIONS)
def test_a_partition_tiles(partition: tuple[list[Box], tuple[int, ...]]) -> None:
    assert tiling_fault(*partition) is None


@given(PARTITIONS, st.data())
def test_a_partition_that_lost_a_box_does_not_tile(
    partition: tuple[list[Box], tuple[int, ...]], data: st.DataObject
) -> None:
    boxes, shape = partition
    index = data.draw(st.integers(0, len(boxes) - 1))
    assert tiling_fault([*boxes[:index], *boxes[index + 1 :]], shape)


@pytest.mark.slow
@given(PARTITIONS, st.data())
def test_a_partition_that_repeats_a_box_does_not_tile(
    partition: tuple[list[Box], tuple[int, ...]], data: st.DataObject
) -> None:
    boxes, shape = partition
    assert tiling_fault([*boxes, data.draw(st.sampled_from(boxes))], shape)


@given(PARTITIONS, st.data())
def test_a_box_in_the_place_of_another_of_its_size_does_not_tile(
    partition: tuple[list[Box], tuple[int, ...]], data: st.DataObject
) -> None:
    boxes, shape = partition
    lost, twice = (data.draw(st.integers(0, len(boxes) - 1)) for _ in range(2))
    if boxes[lost] != boxes[twice]:
        assert tiling_fault([*boxes[:lost], boxes[twice], *boxes[lost + 1 :]], shape)


@given(PARTITIONS, st.data())
def test_a_box_that_is_shifted_does_not_tile(partition: tuple[list[Box], tuple[int, ...]], data: st.DataObject) -> None:
    boxes, shape = partition
    index, axis = data.draw(st.integers(0, len(boxes) - 1)), data.draw(st.integers(0, len(shape) - 1))
    step = data.draw(st.integers(-8, 8).filter(bool))
    start, stop = boxes[index][axis]
    shifted = moved(boxes[index], axis, (start + step, stop + step))
    assert tiling_fault([*boxes[:index], shifted, *boxes[index + 1 :]], shape)


@pytest.mark.slow
@given(PARTITIONS, st.data())
def test_a_box_that_grows_or_shrinks_does_not_tile(
    partition: tuple[list[Box], tuple[int, ...]], data: st.DataObject
) -> None:
    boxes, shape = partition
    index, axis = data.draw(st.integers(0, len(boxes) - 1)), data.draw(st.integers(0, len(shape) - 1))
    start, stop = boxes[index][axis]
    changed = moved(
        boxes[index], axis, data.draw(st.sampled_from([(start, stop + 1), (start - 1, stop), (start + 1, stop)]))
    )
    assert tiling_fault([*boxes[:index], changed, *boxes[index + 1 :]], shape)


PINWHEEL: list[Box] = [((0, 1), (0, 2)), ((0, 2), (2, 3)), ((2, 3), (1, 3)), ((1, 3), (0, 1)), ((1, 2), (1, 2))]


def test_boxes_that_no_straight_cut_separates_tile_too() -> None:
    assert tiling_fault(PINWHEEL, (3, 3)) is None
    # As many elements as the tensor has, one of them twice and one not at all.
    assert tiling_fault([*PINWHEEL[:4], ((1, 2), (2, 3))], (3, 3))


def test_a_scalar_is_one_box_without_axes() -> None:
    assert tiling_fault([()], ()) is None
    assert tiling_fault([], ())
    assert tiling_fault([(), ()], ())


def test_a_tensor_without_elements_needs_no_box() -> None:
    assert tiling_fault([], (0, 4)) is None
    assert tiling_fault([((0, 1), (0, 4))], (0, 4))


def test_many_boxes_are_looked_at_quickly() -> None:
    boxes = [((row, row + 1), (3 * column, 3 * column + 3)) for row in range(300) for column in range(100)]
    assert tiling_fault(boxes, (300, 300)) is None
    assert tiling_fault([*boxes[:-1], boxes[0]], (300, 300))


@given(st.data())
def test_any_boxes_are_judged_as_counting_every_element_judges_them(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    edges = [st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted).map(tuple) for size in shape]
    boxes = data.draw(st.lists(st.tuples(*edges), max_size=5))
    times = np.zeros(shape, int)
    for box in boxes:
        times[tuple(slice(start, stop) for start, stop in box)] += 1
    assert (tiling_fault(boxes, shape) is None) == bool((times == 1).all())
    assert (tiling_fault(boxes, shape, bounded=True) is None) == bool((times == 1).all())


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([((0, 4),)], "one at (0,) has other axes"),
        ([((0, 2), (0, 3)), ((2, 5), (0, 3))], "one of (3, 3) at (2, 0) leaves it"),
        ([((0, 2), (0, 3)), ((-1, 1), (0, 3))], "one of (2, 3) at (-1, 0) leaves it"),
        ([((2, 0), (3, 0)), ((0, 2), (0, 3))], "one of (-2, -3) at (2, 3) leaves it"),
        ([((0, 2), (0, 3))], "they hold 6 elements of 12"),
        ([((0, 2), (0, 3)), ((1, 3), (0, 3))], "those at (0, 0) and (1, 0) overlap"),
    ],
    ids=str,
)
def test_the_fault_is_named(boxes: list[Box], words: str) -> None:
    assert tiling_fault(boxes, (4, 3)) == words


def test_a_box_without_elements_counts_for_nothing() -> None:
    assert tiling_fault([((0, 4),), ((2, 2),)], (4,)) is None
    assert tiling_fault([((2, 2),)], (4,)) == "they hold 0 elements of 4"


def test_the_whole_is_one_box() -> None:
    assert whole_box((4, 0, 3)) == ((0, 4), (0, 0), (0, 3))
    assert tiling_fault([whole_box((4, 0, 3))], (4, 0, 3)) is None


def spiral(depth: int) -> tuple[list[Box], tuple[int, int]]:
    """A square in boxes that no straight cut parts: four around the middle, and again in the middle."""
    boxes: list[Box] = [((depth, depth + 1), (depth, depth + 1))]
    for a in range(depth):
        b = 2 * depth - a
        boxes += [
            ((a, a + 1), (a, b)),
            ((a, b), (b, b + 1)),
            ((b, b + 1), (a + 1, b + 1)),
            ((a + 1, b + 1), (a, a + 1)),
        ]
    return boxes, (2 * depth + 1, 2 * depth + 1)


def test_boxes_in_no_order_are_given_up_where_the_work_is_bounded() -> None:
    assert tiling_fault(*spiral(10), bounded=True) is None
    boxes, shape = spiral(100)
    assert tiling_fault(boxes, shape, bounded=True) == "401 in no order, too many to tell"
    assert tiling_fault(boxes, shape) is None
