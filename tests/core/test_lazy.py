"""Every operation on boxes is the same operation on elements."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import StorageError
from streamconv.core.lazy import LazyTensor, concat, mean, share, total
from tests.stored import counted, stored

Pair = tuple[LazyTensor, torch.Tensor]


def same(pair: Pair) -> None:
    lazy, real = pair
    assert lazy.shape == tuple(real.shape)
    assert torch.equal(lazy.torch(), real)
    assert sum(piece.numel for piece in lazy.pieces) == lazy.numel


def step(data: st.DataObject, pair: Pair) -> Pair:
    """One random operation, done on both sides."""
    lazy, real = pair
    rank = len(lazy.shape)
    dim = data.draw(st.integers(0, rank - 1))
    size = lazy.shape[dim]

    def cut() -> Pair:
        low = data.draw(st.integers(0, size))
        high = data.draw(st.integers(low, size))
        return lazy.slice(dim, low, high), real.narrow(dim, low, high - low)

    def swap() -> Pair:
        order = data.draw(st.permutations(range(rank)))
        return lazy.permute(*order), real.permute(*order)

    def split() -> Pair:
        outer = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0] or [1]))
        return lazy.unflatten(dim, outer, size // outer), real.unflatten(dim, (outer, size // outer))

    def join() -> Pair:
        if rank == 1:
            return pair
        axis = min(dim, rank - 2)
        return lazy.flatten(axis), real.flatten(axis, axis + 1)

    def beside() -> Pair:
        return concat([lazy, lazy], dim), torch.cat([real, real], dim)

    def repeat() -> Pair:
        if not lazy.shape[0]:
            return pair
        row, times = data.draw(st.integers(0, lazy.shape[0] - 1)), data.draw(st.integers(1, 3))
        return lazy.repeat_row(row, times), real[row : row + 1].expand(times, *real.shape[1:])

    def merge() -> Pair:
        return lazy.coalesced(), real

    def widen() -> Pair:
        shape = (*lazy.shape[:dim], data.draw(st.integers(0, 3)), *lazy.shape[dim + 1 :])
        nothing = LazyTensor.zeros(shape, lazy.dtype), torch.zeros(shape, dtype=real.dtype)
        return concat([lazy, nothing[0]], dim), torch.cat([real, nothing[1]], dim)

    choices: list[Callable[[], Pair]] = [cut, swap, join, beside, repeat, merge, widen]
    if rank < 5 and size:
        choices.append(split)
    chosen: Callable[[], Pair] = data.draw(st.sampled_from(choices))
    return chosen()


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chain_of_operations_is_the_same_chain_in_torch(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    base = counted(*shape)
    if data.draw(st.booleans()):
        base = base.permute(*reversed(range(base.dim())))
    (lazy,) = stored(tmp_path / "t.pt", base)
    pair = (lazy, base)
    for _ in range(data.draw(st.integers(1, 6))):
        pair = step(data, pair)
        if pair[1].numel() > 4000:
            break
    same(pair)
    same((pair[0].coalesced(), pair[1]))


@pytest.mark.parametrize("tp", [1, 2, 3, 6])
@pytest.mark.parametrize("dim", [0, 1])
def test_shards_of_a_whole_join_to_one_piece_again(tp: int, dim: int, tmp_path: Path) -> None:
    (whole,) = stored(tmp_path / "t.pt", counted(12, 6))
    size = whole.shape[dim] // tp
    parts = [whole.slice(dim, rank * size, (rank + 1) * size) for rank in range(tp)]
    assert concat(parts, dim).coalesced() == whole


def test_query_key_value_taken_apart_and_put_together_is_one_piece(tmp_path: Path) -> None:
    (fused,) = stored(tmp_path / "t.pt", counted(4 * 3 * 2, 5))
    by_head = fused.unflatten(0, 4, 6)
    parts = [by_head.slice(1, 2 * part, 2 * part + 2) for part in range(3)]
    again = concat(parts, 1).coalesced().flatten(0).coalesced()
    assert again == fused


def test_views_of_one_storage_keep_their_places(tmp_path: Path) -> None:
    base = counted(10, 10)
    views = [base[2:5, 3:7], base.t(), base[:, 0], base[5], base[0, 0], base[3:3], base[:1].expand(4, 10)]
    for lazy, real in zip(stored(tmp_path / "t.pt", *views), views, strict=True):
        same((lazy, real))


def test_a_whole_tensor_is_mapped_and_not_copied(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", counted(100, 10))
    array = lazy.numpy()
    assert not array.flags.writeable
    base: object = array
    while not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
        assert base is not None


def test_a_file_that_has_become_shorter_is_not_mapped(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", counted(100, 10))
    os.truncate(tmp_path / "t.pt", 4000)
    with pytest.raises(StorageError, match=r"ends before byte 4[0-9]{3}, and was longer when opened") as caught:
        lazy.numpy()
    assert caught.value.where == str(tmp_path / "t.pt")


def test_a_mean_is_made_in_double_precision(tmp_path: Path) -> None:
    ranks = [torch.tensor([1.0, 3.0]).bfloat16(), torch.tensor([1.0078125, 4.0]).bfloat16()]
    lazy = mean(stored(tmp_path / "t.pt", *ranks))
    expected = torch.stack(ranks).double().mean(0).bfloat16()
    assert torch.equal(lazy.torch(), expected)
    assert torch.equal(lazy.slice(0, 1, 2).torch(), expected[1:])


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "float8_e5m2", "int64", "bool"])
def test_zeros_are_zero_in_every_bit_and_stored_nowhere(name: str) -> None:
    tensor = LazyTensor.zeros((3, 4), DTYPES[name])
    assert tensor.numpy().tobytes() == bytes(12 * DTYPES[name].itemsize)
    assert torch.equal(tensor.torch(), torch.zeros(3, 4, dtype=getattr(torch, name)))
    assert all(not piece.views for piece in tensor.pieces)


def test_zeros_cut_turned_and_joined_again_are_one_piece() -> None:
    whole = LazyTensor.zeros((12, 6), DTYPES["bfloat16"])
    assert concat([whole.slice(0, 4 * n, 4 * n + 4) for n in range(3)], 0).coalesced() == whole
    assert whole.permute(1, 0).flatten(0).coalesced() == LazyTensor.zeros((72,), DTYPES["bfloat16"])
    assert LazyTensor.zeros((0, 6), DTYPES["bfloat16"]).pieces == ()


def test_zeros_are_cast_without_a_number_to_round() -> None:
    cast = LazyTensor.zeros((5,), DTYPES["float32"]).cast(DTYPES["float16"])
    assert cast == LazyTensor.zeros((5,), DTYPES["float16"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_sum_is_rounded_once(dtype: torch.dtype, count: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(count)
    ranks = list(torch.randn(count, 5, 40, generator=generator).to(dtype))
    lazy = total(stored(tmp_path / "t.pt", *ranks))
    expected = sum(rank.double() for rank in ranks[1:]) + ranks[0].double()
    assert torch.equal(lazy.torch(), expected.to(dtype))
    assert torch.equal(lazy.permute(1, 0).slice(0, 3, 7).flatten(0).torch(), expected.to(dtype).t()[3:7].flatten())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_the_quotient_and_add_up(dtype: torch.dtype, count: int, tmp_path: Path) -> None:
    real = torch.randn(6, 30, generator=torch.Generator().manual_seed(count)).to(dtype)
    (lazy,) = stored(tmp_path / "t.pt", real)
    part = share(lazy, count)
    assert torch.equal(part.torch(), (real.double() / count).to(dtype))
    if count & (count - 1) == 0:
        shares = stored(tmp_path / "shares.pt", *[part.torch().clone() for _ in range(count)])
        assert torch.equal(total(shares).torch(), real)


def test_steps_keep_what_a_piece_is_divided_by(tmp_path: Path) -> None:
    real = torch.arange(24.0).reshape(4, 6)
    (lazy,) = stored(tmp_path / "t.pt", real)
    halves = concat([share(lazy, 2).slice(0, 0, 2), share(lazy, 2).slice(0, 2, 4)], 0)
    assert len(halves.coalesced().pieces) == 1
    assert len(concat([share(lazy, 2).slice(0, 0, 2), lazy.slice(0, 2, 4)], 0).coalesced().pieces) == 2
    assert torch.equal(halves.coalesced().torch(), real / 2)
    assert torch.equal(share(halves, 3).unflatten(1, 3, 2).torch(), (real / 6).unflatten(1, (3, 2)))
    assert torch.equal(share(lazy, 2).repeat_row(1, 3).torch(), (real[1:2] / 2).expand(3, 6))


def test_a_share_of_one_and_a_sum_of_one_are_what_is_stored(tmp_path: Path) -> None:
    whole, number = stored(tmp_path / "t.pt", counted(4, 2), counted(4, dtype=torch.int64))
    assert share(whole, 1) == total([whole]) == whole
    assert share(number, 1) == number
    with pytest.raises(ValueError, match="whole numbers"):
        share(number, 2)
    with pytest.raises(ValueError, match="whole stored tensors"):
        total([share(whole, 2), whole])


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float64"])
def test_a_cast_is_torchs(name: str, tmp_path: Path) -> None:
    real = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    (lazy,) = stored(tmp_path / "t.pt", real)
    assert torch.equal(lazy.cast(DTYPES[name]).torch(), real.to(getattr(torch, name)))


def test_whole_numbers_are_never_cast(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", counted(4, dtype=torch.int64))
    assert lazy.cast(DTYPES["bfloat16"]) == lazy


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    a, b, c = stored(tmp_path / "t.pt", counted(4, 2), counted(4, 3), counted(4, 2, dtype=torch.float64))
    with pytest.raises(IndexError):
        a.slice(0, 2, 5)
    with pytest.raises(ValueError, match="not 3 x 2"):
        a.unflatten(0, 3, 2)
    for other in (b, c):
        with pytest.raises(ValueError, match="cannot join"):
            concat([a, other], 0)
        with pytest.raises(ValueError, match="one shape and dtype"):
            mean([a, other])
    assert prod(a.shape) == a.numel


def test_tensors_of_unlike_types_are_joined_as_a_type_that_is_said_and_taken_apart_as_stored(tmp_path: Path) -> None:
    wide, narrow = torch.rand(3, 4), torch.rand(2, 4).bfloat16()
    parts = stored(tmp_path / "f.pt", wide, narrow)
    with pytest.raises(ValueError, match="cannot join"):
        concat(parts, 0)
    joined = concat(parts, 0, DTYPES["float16"])
    assert torch.equal(joined.torch(), torch.cat([wide.half(), narrow.half()]))
    assert joined.as_stored() is joined
    assert [joined.slice(0, start, stop).as_stored() for start, stop in ((0, 3), (3, 5))] == parts
    with pytest.raises(ValueError, match="cannot join"):
        concat([parts[0], parts[1].permute(1, 0)], 0, DTYPES["float16"])
