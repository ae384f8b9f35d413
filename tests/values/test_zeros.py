"""What counts as zero: every bit of every element, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamconv.core.errors import DamagedError
from streamconv.values.zeros import all_zero
from tests.stored import stored

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_zeros_are_zero(dtype: torch.dtype, tmp_path: Path) -> None:
    assert all_zero(stored(tmp_path / "t.pt", torch.zeros(7, dtype=dtype), torch.zeros(3, 5, dtype=dtype)))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("value", [-0.0, float("nan"), 1.0, -2.0])
def test_a_minus_zero_a_nan_and_a_number_are_not(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    odd = torch.zeros(9, dtype=torch.float32)
    odd[8] = value
    assert not all_zero(stored(tmp_path / "t.pt", torch.zeros(7), odd.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_smallest_number_is_not(dtype: torch.dtype, tmp_path: Path) -> None:
    assert not all_zero(stored(tmp_path / "t.pt", torch.tensor([0, 1], dtype=torch.int16).view(dtype)))


@pytest.mark.parametrize("at", [0, 99_999, 299_999])
def test_an_element_of_a_long_tensor_is_found_wherever_it_is(at: int, tmp_path: Path) -> None:
    """More than one part of 256 KiB, and views that are no run."""
    long = torch.zeros(300_000)
    long[at] = 1e-45
    tensors = stored(tmp_path / "t.pt", long, torch.zeros(60_000, 5)[:, 2])
    assert not all_zero(tensors)
    assert all_zero(tensors[1:])
    assert all_zero([tensors[0].slice(0, 0, at), tensors[0].slice(0, at + 1, 300_000)])


def test_nothing_at_all_is_zero(tmp_path: Path) -> None:
    assert all_zero([])
    assert all_zero(stored(tmp_path / "t.pt", torch.empty(0)))


def test_a_record_that_is_not_what_its_file_says_is_refused(tmp_path: Path) -> None:
    """A changed byte may have made the zero."""
    real = torch.zeros(50)
    real[7] = 2.0
    (tensor,) = stored(tmp_path / "t.pt", real)
    path, storage = tmp_path / "t.pt", tensor.pieces[0].views[0].storage
    data = bytearray(path.read_bytes())
    data[storage.offset + 28 : storage.offset + 32] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="CRC"):
        all_zero([tensor])
