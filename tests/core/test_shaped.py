"""``LazyTensor.shaped`` is ``torch.reshape`` of a row, however the row is stored."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from streamconv.core.dtypes import DTYPES
from streamconv.core.lazy import LazyTensor, concat
from tests.stored import counted, stored


def same(lazy: LazyTensor, real: torch.Tensor) -> None:
    assert lazy.shape == tuple(real.shape)
    assert torch.equal(lazy.torch(), real)
    assert sum(piece.numel for piece in lazy.pieces) == lazy.numel


SHAPES = [(24,), (1, 24), (24, 1), (2, 3, 4), (4, 3, 2), (2, 1, 12), (1, 1, 1, 24), (2, 2, 2, 3), (3, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cuts", [(0, 24), (0, 5, 24), (0, 1, 2, 11, 13, 24), (0, 12, 24), tuple(range(25))])
def test_a_row_of_parts_is_shaped_as_torch_reshapes(
    cuts: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Parts end inside rows, between them, and after each element; each stands somewhere in another vector."""
    flat = counted(24)
    vectors = [torch.cat([counted(3, start=100), flat[a:b], counted(2, start=200)]) for a, b in pairwise(cuts)]
    lazy = stored(tmp_path / "t.pt", *vectors)
    row = concat([part.slice(0, 3, part.shape[0] - 2) for part in lazy], 0)
    same(row.shaped(shape), flat.reshape(shape))
    same(row.shaped(shape).coalesced(), flat.reshape(shape))
    if len(shape) > 1:
        joined = row.shaped(shape)
        while len(joined.shape) > 1:
            joined = joined.flatten(0)
        same(joined.coalesced(), flat)


def test_a_row_that_is_stored_with_steps_is_shaped(tmp_path: Path) -> None:
    base = counted(24, 3)
    lazy, turned = stored(tmp_path / "t.pt", base[:, 1], base.flatten()[::3])
    same(lazy.shaped((4, 6)), base[:, 1].reshape(4, 6))
    same(turned.shaped((2, 3, 4)), base[:, 0].reshape(2, 3, 4))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_one_element_has_any_number_of_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", counted(5, start=7))
    same(lazy.slice(0, 3, 4).shaped(shape), torch.tensor(10.0).reshape(shape))
    same(LazyTensor.zeros((1,), DTYPES["float32"]).shaped(shape), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 2)])
def test_nothing_is_shaped_to_nothing(shape: tuple[int, ...], tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", counted(5))
    same(lazy.slice(0, 2, 2).shaped(shape), torch.empty(shape))


@pytest.mark.parametrize(("start", "shape"), [((4,), (3,)), ((4,), ()), ((4,), (0, 4)), ((2, 2), (4,)), ((), (1,))])
def test_another_number_of_elements_or_of_axes_is_not_shaped(
    start: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    (lazy,) = stored(tmp_path / "t.pt", counted(*start))
    with pytest.raises(ValueError, match="has not the elements"):
        lazy.shaped(shape)


def test_what_was_shaped_is_cast_and_cut_as_any_other(tmp_path: Path) -> None:
    real = torch.randn(24, generator=torch.Generator().manual_seed(1))
    row = concat(stored(tmp_path / "t.pt", real[:7].clone(), real[7:].clone()), 0)
    found = row.shaped((4, 6)).slice(1, 1, 5).slice(0, 1, 3).cast(DTYPES["bfloat16"])
    assert torch.equal(found.torch(), real.reshape(4, 6)[1:3, 1:5].bfloat16())
