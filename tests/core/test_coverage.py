"""The proof that a plan loses nothing and repeats nothing: what it accepts, and that it sees every fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from streamconv.core.coverage import Coverage, CoverageError, boxes_in_source, prove
from streamconv.core.dtypes import DTYPES
from streamconv.core.lazy import LazyTensor, Piece, Storage, View, concat, mean, share, total
from streamconv.core.tiling import Box

BF16 = DTYPES["bfloat16"]

# -- sources ---------------------------------------------------------------------------------------------------------


def record(name: str, numel: int) -> Storage:
    return Storage(Path("layer.pt"), 0, 2 * numel, name)


def source(name: str, *shape: int, offset: int = 0, storage: Storage | None = None) -> LazyTensor:
    """A contiguous tensor in a record of its own, or ``offset`` elements into ``storage``."""
    strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return LazyTensor.stored(View(storage or record(name, prod(shape)), BF16, offset, strides), shape)


NOTHING: Mapping[str, Sequence[Box] | None] = {}


def check(
    sources: Mapping[str, LazyTensor],
    targets: Sequence[LazyTensor],
    left_out: Mapping[str, Sequence[Box] | None] = NOTHING,
) -> Coverage:
    return prove(sources, left_out, [("role", target) for target in targets])


def test_a_copy_is_proved_and_counted() -> None:
    a, b = source("a", 4, 6), source("b", 8)
    assert check({"a": a, "b": b}, [a, b]) == Coverage(consumed=2, left_out=0, written=2)


@pytest.mark.parametrize("axis", [0, 1])
def test_splits_of_an_axis_are_proved(axis: int) -> None:
    a = source("a", 4, 6)
    half = a.shape[axis] // 2
    targets = [a.slice(axis, 0, half), a.slice(axis, half, 2 * half)]
    assert check({"a": a}, targets) == Coverage(1, 0, 2)


@pytest.mark.parametrize("axis", [0, 1])
def test_shards_joined_and_split_elsewhere_are_proved(axis: int) -> None:
    shards = [source(f"{rank}", 4, 6) for rank in range(2)]
    whole = concat(shards, axis)
    third = whole.shape[axis] // 4
    targets = [whole.slice(axis, n * third, (n + 1) * third) for n in range(4)]
    assert check({"0": shards[0], "1": shards[1]}, targets) == Coverage(2, 0, 4)


def blocks_as_heads(shard: LazyTensor, heads: int) -> LazyTensor:
    """Rows in blocks [Q; K; V] as rows by head."""
    size = shard.shape[0] // (3 * heads)
    rest = range(3, 2 + len(shard.shape))
    split = shard.unflatten(0, 3, heads * size).unflatten(1, heads, size)
    return split.permute(1, 0, 2, *rest).flatten(0).flatten(0)


@pytest.mark.parametrize("tail", [(5,), ()], ids=["weight", "bias"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_query_key_value_permutations_are_proved(tail: tuple[int, ...], tp: int) -> None:
    shards = {f"{rank}": source(f"{rank}", 24, *tail) for rank in range(2)}
    whole = concat([blocks_as_heads(shard, 4) for shard in shards.values()], 0)
    rows = 48 // tp
    targets = [whole.slice(0, rank * rows, (rank + 1) * rows) for rank in range(tp)]
    assert check(shards, targets) == Coverage(2, 0, tp)
    with pytest.raises(CoverageError, match="read exactly once"):
        check(shards, [*targets[:-1], targets[-1].slice(0, 0, rows - 1)])


def test_a_transposed_source_is_proved() -> None:
    a = source("a", 4, 6)
    stored = LazyTensor.stored(View(a.pieces[0].views[0].storage, BF16, 0, (1, 6)), (6, 4))
    assert check({"a": stored}, [stored.slice(0, 0, 2), stored.slice(0, 2, 6).permute(1, 0)]) == Coverage(1, 0, 2)


def test_tensors_that_share_one_record_are_told_apart() -> None:
    flat = record("flat", 40)
    a, b = source("a", 4, 6, storage=flat), source("b", 16, offset=24, storage=flat)
    assert check({"a": a, "b": b}, [a, b]) == Coverage(2, 0, 2)
    with pytest.raises(CoverageError, match="source tensor b"):
        check({"a": a, "b": b}, [a, b.slice(0, 0, 15)])


def test_a_mean_reads_every_copy() -> None:
    copies = {f"{rank}": source(f"{rank}", 6) for rank in range(3)}
    assert check(copies, [mean(list(copies.values()))]) == Coverage(3, 0, 1)


def test_a_sum_reads_every_share() -> None:
    shares = {f"{rank}": source(f"{rank}", 6) for rank in range(3)}
    whole = total(list(shares.values()))
    assert check(shares, [whole]) == Coverage(3, 0, 1)
    ranks = [(f"rank {rank}", share(whole, 2)) for rank in range(2)]
    assert prove(shares, {}, ranks) == Coverage(3, 0, 2)
    with pytest.raises(CoverageError, match="neither read nor left out"):
        check(shares, [total(list(shares.values())[:2])])


def test_two_roles_may_each_read_a_source_whole() -> None:
    a = source("a", 4, 6)
    halves = [a.slice(0, 0, 2), a.slice(0, 2, 4)]
    roles = [("embedding", halves[0]), ("head", a), ("embedding", halves[1])]
    assert prove({"a": a}, {}, roles) == Coverage(1, 0, 3)


def test_a_role_of_its_own_must_still_read_the_whole() -> None:
    a = source("a", 4, 6)
    with pytest.raises(CoverageError, match="for head"):
        prove({"a": a}, {}, [("embedding", a), ("head", a.slice(0, 0, 3))])


def test_what_stays_behind_on_purpose_needs_no_reader() -> None:
    a, b = source("a", 4, 6), source("b", 4)
    assert check({"a": a, "b": b}, [a], {"b": None}) == Coverage(consumed=1, left_out=1, written=1)
    rows: Box = ((3, 4), (0, 6))
    assert check({"a": a}, [a.slice(0, 0, 3)], {"a": [rows]}) == Coverage(1, 0, 1)


def test_made_up_rows_read_nothing() -> None:
    a = source("a", 4, 6)
    padded = concat([a.slice(0, 0, 3), a.repeat_row(2, 5)], 0)
    assert check({"a": a}, [padded], {"a": [((3, 4), (0, 6))]}) == Coverage(1, 0, 1)


def test_zeros_cover_the_target_and_stand_for_no_source_element() -> None:
    a = source("a", 4, 6)
    nothing = LazyTensor.zeros((2, 6), a.dtype)
    assert check({"a": a}, [nothing, concat([a, nothing], 0)]) == Coverage(1, 0, 2)
    with pytest.raises(CoverageError, match="neither read nor left out"):
        check({"a": a}, [LazyTensor.zeros(a.shape, a.dtype)])
    with pytest.raises(CoverageError, match="read exactly once"):
        check({"a": a}, [concat([a.slice(0, 0, 2), nothing], 0)])


# -- faults ----------------------------------------------------------------------------------------------------------


def test_a_lost_row_is_seen() -> None:
    a = source("a", 4, 6)
    for targets in ([a.slice(0, 0, 2), a.slice(0, 3, 4)], [a.slice(0, 1, 4)], [a.slice(1, 0, 5)]):
        with pytest.raises(CoverageError, match=r"source tensor a .* would not be read exactly once for role"):
            check({"a": a}, targets)


def test_a_doubled_row_is_seen() -> None:
    a = source("a", 4, 6)
    for targets in ([a, a.slice(0, 1, 2)], [a.slice(0, 0, 3), a.slice(0, 2, 4)], [a, a]):
        with pytest.raises(CoverageError, match="read exactly once"):
            check({"a": a}, targets)


def test_one_row_for_another_is_seen() -> None:
    a = source("a", 4, 6)
    with pytest.raises(CoverageError, match="read exactly once"):
        check({"a": a}, [concat([a.slice(0, 0, 2), a.slice(0, 1, 3)], 0)])


def test_an_unread_source_is_seen() -> None:
    a, b, c = source("a", 4, 6), source("b", 4), source("c", 2)
    with pytest.raises(CoverageError, match=r"2 source tensors are neither read nor left out .* the first is b"):
        check({"a": a, "b": b, "c": c}, [a])


def test_a_source_that_is_left_out_in_part_must_be_read_otherwise() -> None:
    a, b = source("a", 4, 6), source("b", 4)
    with pytest.raises(CoverageError, match="the first is b"):
        check({"a": a, "b": b}, [a], {"b": [((0, 2),)]})
    with pytest.raises(CoverageError, match="the first is b"):
        check({"a": a, "b": b}, [a], {"b": []})


def test_what_is_left_out_and_read_all_the_same_is_seen() -> None:
    a = source("a", 4, 6)
    with pytest.raises(CoverageError, match="read exactly once"):
        check({"a": a}, [a], {"a": [((3, 4), (0, 6))]})


def test_a_read_of_another_record_is_seen() -> None:
    a = source("a", 4, 6)
    with pytest.raises(CoverageError, match=r"reads b of layer\.pt outside every source tensor"):
        check({"a": a}, [a, source("b", 2)])


def test_a_read_beside_every_tensor_of_a_record_is_seen() -> None:
    flat = record("flat", 40)
    a = source("a", 4, 6, storage=flat)
    for offset in (24, 30, 39):
        with pytest.raises(CoverageError, match="outside every source tensor"):
            check({"a": a}, [a, source("beside", 1, offset=offset, storage=flat)])


@pytest.mark.parametrize("offset", [1, 6, 18])
def test_a_read_that_starts_inside_a_tensor_and_ends_beyond_it_is_seen(offset: int) -> None:
    flat = record("flat", 48)
    a = source("a", 4, 6, storage=flat)
    with pytest.raises(CoverageError):
        check({"a": a}, [source("across", 4, 6, offset=offset, storage=flat)])


def test_a_read_with_a_stride_of_no_axis_is_seen() -> None:
    flat = record("flat", 48)
    a = LazyTensor.stored(View(flat, BF16, 0, (12, 2)), (4, 6))
    with pytest.raises(CoverageError, match="a view with stride 1"):
        check({"a": a}, [LazyTensor.stored(View(flat, BF16, 0, (12, 1)), (4, 6))])


def test_a_target_with_overlapping_pieces_is_seen() -> None:
    a = source("a", 4, 6)
    (piece,) = a.pieces
    half = replace(piece, shape=(2, 6))
    for pieces in ((half, half), (piece, half), (half,), (), (half, replace(half, start=(3, 0)))):
        with pytest.raises(CoverageError, match=r"target tensor of role \(4, 6\) would not be written exactly once"):
            check({"a": a}, [LazyTensor((4, 6), BF16, pieces)])


def test_boxes_in_a_source_are_where_the_view_reads() -> None:
    a = source("a", 4, 6)
    part = a.slice(0, 1, 3).slice(1, 2, 5)
    (piece,) = part.pieces
    assert boxes_in_source(piece, piece.views[0], a) == [((1, 3), (2, 5))]
    strided: Piece = Piece((0, 0), (2, 6), (View(a.pieces[0].views[0].storage, BF16, 0, (12, 1)),))
    assert boxes_in_source(strided, strided.views[0], a) == [((0, 1), (0, 6)), ((2, 3), (0, 6))]
