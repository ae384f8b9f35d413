"""Statistics against torch in double precision: every type, any cut into parts, any number of threads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.containers.torch_save.open import open_torch
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import MemoryBudgetError, UsageError
from streamconv.memory.budget import MIB
from streamconv.values.measure import tensor_statistics
from streamconv.values.options import ReadingOptions
from streamconv.values.statistics import Moments, Statistics, flags_of, joined, together
from streamconv.values.sweep import SweepSettings, fit_sweep

pytestmark = pytest.mark.disk

ROUGHLY: dict[str, Any] = {"rel": 1e-9, "abs": 1e-12}
PLAIN = SweepSettings(2, 1 << 20, "pread")


def measured(path: Path, tensors: Mapping[str, torch.Tensor], how: SweepSettings = PLAIN) -> dict[str, Statistics]:
    torch.save(dict(tensors), path)
    return tensor_statistics(open_torch(path).tensors(), how)


def expected(tensor: torch.Tensor) -> Statistics:
    values = tensor.double().flatten()
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    finite = values[values.isfinite()]
    zeros = int((finite == 0).sum())
    if not finite.numel():
        return Statistics(values.numel(), None, None, None, None, None, zeros, nan, inf)
    found = (finite.min(), finite.max(), finite.mean(), finite.std(correction=0), finite.norm())
    least, most, mean, std, norm = map(float, found)
    return Statistics(values.numel(), least, most, mean, std, norm, zeros, nan, inf)


def assert_equal(found: Statistics, wanted: Statistics) -> None:
    counts = [(one.numel, one.zeros, one.nan, one.inf, one.least, one.most) for one in (found, wanted)]
    assert counts[0] == counts[1]
    for name in ("mean", "std", "norm"):
        first, second = getattr(found, name), getattr(wanted, name)
        assert (first is None) == (second is None)
        if first is not None:
            scale = max(abs(wanted.least or 0), abs(wanted.most or 0), 1e-300)
            assert math.isclose(first, second, rel_tol=1e-10, abs_tol=1e-12 * scale), name


@pytest.mark.parametrize("name", [name for name in DTYPES if not name.startswith("complex")])
def test_every_type(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    real = torch.randn(61, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 20
    real[3, 4:9] = 0
    tensor = real.abs().to(dtype) if name.startswith("uint") or name == "bool" else real.to(dtype)
    trees = {"whole": tensor, "turned": tensor.t(), "column": tensor[:, 5], "scalar": tensor[1, 1].clone()}
    trees |= {"empty": tensor[:0], "few": tensor[::7, 3:9]}
    if tensor.dtype.is_floating_point:
        broken = real.clone()
        broken[0, :3], broken[5, 5] = float("nan"), float("-inf")
        trees["broken"] = broken.to(dtype)
        trees["all nan"] = torch.full((5,), float("nan")).to(dtype)
    for key, found in measured(tmp_path / "t.pt", trees).items():
        assert_equal(found, expected(trees[key]))


def test_complex_tensors_are_left_out(tmp_path: Path) -> None:
    assert list(measured(tmp_path / "t.pt", {"c": torch.ones(3, dtype=torch.complex64), "r": torch.ones(2)})) == ["r"]


def test_a_mean_far_from_zero_costs_no_digits(tmp_path: Path) -> None:
    tensor = 1e8 + torch.rand(300_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found,) = measured(tmp_path / "t.pt", {"x": tensor}, SweepSettings(1, 4096, "pread")).values()
    assert found.std == pytest.approx(float((tensor - 1e8).std(correction=0)), rel=1e-6)


def test_the_largest_numbers_give_no_warning_and_no_error(tmp_path: Path) -> None:
    tree = {"x": torch.tensor([1e308, -1e308], dtype=torch.float64), "y": torch.tensor([3e38, -3e38, 1e-45])}
    found = measured(tmp_path / "t.pt", tree)
    assert found["x"].most == 1e308
    assert found["y"].norm == pytest.approx(float(tree["y"].double().norm()))


@pytest.mark.parametrize("block", [600, 4096, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(block: int, threads: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(9)
    matrix = torch.randn(200, 150, generator=generator)
    tree = {"m": matrix, "t": matrix.t(), "b": (matrix * 3 + 1).bfloat16(), "s": matrix[::3, 7:90]}
    first = measured(tmp_path / "a.pt", tree, SweepSettings(1, 1 << 24, "pread"))
    again = measured(tmp_path / "b.pt", tree, SweepSettings(threads, block, "direct"))
    for name, one in first.items():
        other = again[name]
        assert (one.least, one.most, one.zeros, one.numel) == (other.least, other.most, other.zeros, other.numel)
        for field in ("mean", "std", "norm"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-12, abs=1e-12)


numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


@settings(deadline=None)
@given(values=numbers, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_parts_joined_are_the_whole(values: list[float], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    runs = [values[a:b] for a, b in pairwise(edges)]

    def moments(run: list[float]) -> Moments:
        if not run:
            return Moments()
        mean = math.fsum(run) / len(run)
        squares = math.fsum((x - mean) ** 2 for x in run)
        return Moments(len(run), len(run), run.count(0), 0, min(run), max(run), mean, squares)

    found = together(map(moments, runs)).result()
    assert_equal(found, expected(torch.tensor(values, dtype=torch.float64)))
    again = joined(moments(run).result() for run in runs)
    assert again.mean == pytest.approx(found.mean, **ROUGHLY)
    assert again.norm == pytest.approx(found.norm, rel=1e-7, abs=1e-9)
    assert (again.numel, again.zeros, again.least) == (found.numel, found.zeros, found.least)


# -- what stands out ---------------------------------------------------------------------------------------------------


def one(rms: float, **more: int) -> Statistics:
    counts = {"zeros": 0, "nan": 0, "inf": 0} | more
    return Statistics(100, -rms, rms, 0.0, rms, rms * 10, **counts)


def flags(sizes: list[float]) -> dict[str, list[str]]:
    found = {f"layers.{n}.w": one(size) for n, size in enumerate(sizes)}
    return flags_of(found, dict.fromkeys(found, "w"))


def test_ordinary_layers_do_not_stand_out() -> None:
    generator = torch.Generator().manual_seed(2)
    for count in (1, 2, 4, 12, 70):
        sizes = (0.02 * torch.exp(0.2 * torch.randn(count, generator=generator))).tolist()
        assert not flags(sizes)
        # Norms of a residual stream grow with depth, and fresh ones are all alike.
        assert not flags([0.02 * 1.05**layer for layer in range(count)])
        assert not flags([1.0] * count)
        assert not flags([0.0] * count)
    assert not flags([1.0, 1.0, 1.0, 2.9])


@pytest.mark.parametrize("factor", [100.0, 0.01, 3.5])
def test_a_layer_that_is_far_off_stands_out(factor: float) -> None:
    assert list(flags([0.02, 0.021, 0.02 * factor, 0.019, 0.02, 0.0205])) == ["layers.2.w"]
    assert list(flags([1.0, 1.0, factor, 1.0, 1.0])) == ["layers.2.w"]


def test_zeros_stand_out_among_layers_only() -> None:
    assert flags([0.02, 0.0, 0.02])["layers.1.w"] == ["all zeros, unlike the other layers"]
    lonely = {"bias": one(0.0), "weight": one(1.0)}
    assert not flags_of(lonely, {})


def test_nan_and_infinity_always_stand_out() -> None:
    found = {"a": one(1.0, nan=3), "b": one(1.0, inf=1, nan=2), "c": one(1.0)}
    assert flags_of(found, {}) == {"a": ["3 NaN"], "b": ["2 NaN", "1 infinite"]}


def test_sizes_beyond_all_bounds_are_words_too() -> None:
    assert "layers.0.w" in flags([1e300, 1e-200, 1e-200, 1e-200, 1e-200])


# -- the budget --------------------------------------------------------------------------------------------------------


def test_a_budget_below_the_floor_is_refused_with_a_number_that_works() -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        fit_sweep(ReadingOptions(max_ram="10M"))
    assert caught.value.remedy is not None
    number = caught.value.remedy.split()[2]
    assert number.endswith("M")
    enough = fit_sweep(ReadingOptions(max_ram=f"{int(number[:-1]) + 16}M"))
    assert enough.block >= 256 << 10
    assert fit_sweep(ReadingOptions(max_ram="64G")) == SweepSettings(threads=2, block=8 << 20, io="direct")


@pytest.mark.parametrize(("sides", "jobs", "threads"), [(1, None, 2), (2, 1, 1), (2, 3, 3), (3, None, 2)])
def test_blocks_of_all_threads_and_sides_fill_the_budget(sides: int, jobs: int | None, threads: int) -> None:
    """Beside the resident set each thread has 14 MiB and two blocks for each side, and 8 MiB are left."""
    resident = psutil.Process().memory_info().rss
    each = 14 * MIB + 2 * sides * 4 * MIB
    fitted = fit_sweep(
        ReadingOptions(max_ram=f"{(resident + 8 * MIB + threads * each) // 1024}K", jobs=jobs), sides=sides
    )
    assert fitted.threads == threads
    assert fitted.block == pytest.approx(4 * MIB, abs=MIB)


@pytest.mark.parametrize("jobs", [0, -1, 10_000])
def test_threads_that_make_no_sense_are_refused(jobs: int) -> None:
    with pytest.raises(UsageError, match="--jobs"):
        fit_sweep(ReadingOptions(max_ram="4G", jobs=jobs))
