"""What differs between two sides is found to the element, whatever is stored where and however it is read."""

from __future__ import annotations

import math
import random
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from streamconv.core.options import Given
from streamconv.values.sweep import SweepSettings
from streamconv.verification.compare import compare
from streamconv.verification.comparison import Comparison
from streamconv.verification.sides import open_sides
from tests import oracle
from tests.damage import flip, mend, records
from tests.places import REAL

pytestmark = pytest.mark.disk

BLOOM = REAL[1]
CUT = (*oracle.SPLIT_ON_ROWS, *oracle.ROW_PARALLEL)
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
         torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # fmt: skip
NUMBERS = TYPES[:4]
Tensors = dict[str, torch.Tensor]


def compared(a: Path, b: Path, threads: int = 2, block: int = 1 << 20, *, cast: bool = False) -> Comparison:
    sides = open_sides(a, b, Given({}), Given({}))
    return compare(*sides, SweepSettings(threads, block, "direct"), cast=cast)


def saved(folder: Path, a: Any, b: Any, **how: Any) -> Comparison:
    torch.save(a, folder / "a.pt")
    torch.save(b, folder / "b.pt")
    return compared(folder / "a.pt", folder / "b.pt", **how)


def random_bits(generator: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Any bits at all, so also NaNs of many payloads, infinities and subnormal numbers."""
    nbytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(generator.integers(0, 256, nbytes, np.uint8)).view(dtype).reshape(shape)


def distances(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The largest distance of pairs of numbers, and the largest relative to the larger of the two."""
    worst, relative = 0.0, 0.0
    for x, y in pairs:
        if x == y or (math.isnan(x) and math.isnan(y)):
            continue
        apart = math.inf if math.isnan(x) or math.isnan(y) else abs(x - y)
        worst = max(worst, apart)
        relative = max(relative, math.inf if math.isinf(apart) else apart / max(abs(x), abs(y)))
    return worst, relative


def check(found: Comparison, a: torch.Tensor, b: torch.Tensor, differs: torch.Tensor) -> None:
    """One tensor ``w`` against what torch and python floats say of it, its place computed from torch's strides."""
    assert [one.name for one in found.values] == (["w"] if differs.any() else [])
    for one in found.values:
        where = differs.nonzero()
        assert (one.elements, one.numel) == (len(where), a.numel())
        assert one.first == tuple(where[0].tolist())
        pairs = list(zip(a[differs].double().tolist(), b[differs].double().tolist(), strict=True))
        assert (one.max_abs, one.max_rel) == distances(pairs)
        for place, tensor, value in ((one.a, a, pairs[0][0]), (one.b, b, pairs[0][1])):
            start = records(Path(place.file))["data/0"][0]
            steps = sum(i * s for i, s in zip(one.first, tensor.stride(), strict=True))
            assert place.offset == start + (tensor.storage_offset() + steps) * tensor.element_size()
            assert place.value == value or (math.isnan(value) and place.value is not None and math.isnan(place.value))


SHAPES = st.lists(st.integers(1, 7), min_size=0, max_size=3).map(tuple)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.sampled_from(TYPES), SHAPES, st.integers(0, 6), st.integers(0, 2**32), st.integers(8, 300), st.booleans())
def test_flipped_bits_are_found_to_the_byte(
    dtype: torch.dtype, shape: tuple[int, ...], flips: int, seed: int, block: int, turned: bool
) -> None:
    generator = np.random.default_rng(seed)
    a = random_bits(generator, shape, dtype)
    raw = a.clone().reshape(-1).view(torch.uint8)
    for _ in range(flips):
        raw[int(generator.integers(raw.numel()))] ^= 1 << int(generator.integers(8))
    b = raw.view(dtype).reshape(shape)
    if turned:
        a, b = a.movedim(0, -1) if shape else a, b.movedim(0, -1) if shape else b
    raws = [t.contiguous().reshape(-1).view(torch.uint8).reshape(*t.shape, dtype.itemsize) for t in (a, b)]
    with TemporaryDirectory() as folder:
        for threads in (1, 2):
            found = saved(Path(folder), {"w": a}, {"w": b}, threads=threads, block=block)
            check(found, a, b, (raws[0] != raws[1]).any(-1))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.permutations(NUMBERS), SHAPES, st.integers(0, 3), st.integers(0, 2**32), st.integers(8, 300))
def test_other_dtypes_are_compared_as_numbers(
    types: list[torch.dtype], shape: tuple[int, ...], changes: int, seed: int, block: int
) -> None:
    generator = np.random.default_rng(seed)
    a = random_bits(generator, shape, types[0])
    b = a.to(types[1])
    for _ in range(changes):
        b.view(-1)[int(generator.integers(b.numel()))] = float(generator.normal())
    x, y = a.double(), b.double()
    with TemporaryDirectory() as folder:
        found = saved(Path(folder), {"w": a}, {"w": b}, block=block)
        (pair,) = found.dtypes
        assert [pair.a, pair.b] == [str(dtype).removeprefix("torch.") for dtype in types[:2]]
        assert (found.is_equal, found.is_faithful) == (False, not found.values)
        check(found, a, b, (x != y) & ~(x.isnan() & y.isnan()))


@pytest.mark.parametrize("turned", [False, True])
def test_the_first_difference_of_a_large_tensor_is_first_by_row(turned: bool, tmp_path: Path) -> None:
    a = torch.arange(3.0 * 100_000).reshape(3, 100_000)
    b = a.clone()
    places = [(0, 99_000), (1, 0), (1, 1), (2, 50_000), (0, 99_001), (2, 99_999)]
    for place in places:
        b[place] += 1 + place[1]
    if turned:
        a, b = a.T, b.T
    for threads, block in ((1, 1 << 24), (2, 1 << 24), (2, 1 << 16), (3, 5000)):
        found = saved(tmp_path, {"w": a}, {"w": b}, threads=threads, block=block)
        check(found, a, b, a != b)
        assert found.values[0].first == ((0, 1) if turned else (0, 99_000))


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("a", "b", "differing", "most", "relative"),
    [
        ([INF, -INF, 1.0], [INF, -INF, 1.0], 0, 0.0, 0.0),
        ([INF, 1.0], [-INF, 1.0], 1, INF, INF),
        ([INF, 1.0], [3.0, 2.0], 2, INF, INF),
        ([NAN, 1.0], [NAN, 1.5], 1, 0.5, 0.5 / 1.5),
        ([NAN, 1.0], [0.0, 1.0], 1, INF, INF),
        ([0.0, 1.0], [-0.0, 1.0], 1, 0.0, 0.0),
        ([0.0, 1.0], [2.0, 1.0], 1, 2.0, 1.0),
        ([1e308], [-1e308], 1, INF, INF),
    ],
)
def test_numbers_that_are_none(
    a: list[float], b: list[float], differing: int, most: float, relative: float, tmp_path: Path
) -> None:
    found = saved(tmp_path, {"w": torch.tensor(a).double()}, {"w": torch.tensor(b).double()})
    if a == [1e308]:
        found = saved(
            tmp_path, {"w": torch.tensor(a, dtype=torch.float64)}, {"w": -torch.tensor(a, dtype=torch.float64)}
        )
    assert sum(one.elements for one in found.values) == differing
    assert all((one.max_abs, one.max_rel) == (most, relative) for one in found.values)


def test_another_nan_beside_another_number_is_no_infinite_distance(tmp_path: Path) -> None:
    nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    a, b = torch.tensor([0.0, 4.0, 8.0]), torch.tensor([0.0, 5.0, 8.0])
    a[0], b[0] = nans
    (one,) = saved(tmp_path, {"w": a}, {"w": b}).values
    assert (one.elements, one.max_abs, one.max_rel, one.first) == (2, 1.0, 0.2, (0,))


def test_complex_numbers_are_apart_in_their_plane_and_have_no_one_value(tmp_path: Path) -> None:
    (one,) = saved(tmp_path, {"w": torch.tensor([1j, 3 + 4j])}, {"w": torch.tensor([1j, 0j])}).values
    assert (one.first, one.max_abs, one.max_rel, one.a.value, one.b.value) == ((1,), 5.0, 1.0, None, None)


def test_tensors_without_elements_and_rows_that_are_stored_once_are_compared(tmp_path: Path) -> None:
    found = saved(tmp_path, {"w": torch.empty(0, 3)}, {"w": torch.empty(0, 3)})
    assert (found.is_equal, found.compared, found.exit_code) == (False, 1, 3)  # nothing was looked at
    found = saved(tmp_path, {"w": torch.empty(0, 3), "x": torch.ones(1)}, {"w": torch.empty(0, 3), "x": torch.ones(1)})
    assert (found.is_equal, found.compared, found.exit_code) == (True, 2, 0)
    for shape in ((1, 100_000), (100_000, 1), (3, 50_000)):
        a, b = torch.ones(shape[0], 1).expand(shape), torch.ones(shape)
        assert saved(tmp_path, {"w": a}, {"w": b}, block=1000).is_equal
        b[-1, -1] = 2
        (one,) = saved(tmp_path, {"w": a}, {"w": b}, block=1000).values
        assert (one.elements, one.first) == (1, (shape[0] - 1, shape[1] - 1))


def test_names_shapes_and_dtypes_that_only_one_side_has(tmp_path: Path) -> None:
    ones = torch.ones(2, 3)
    a, b = {"x": ones, "same": ones, "shape": ones, "dtype": ones}, {"same": ones, "y": ones, "z": ones}
    found = saved(tmp_path, a, b | {"shape": ones.T.contiguous(), "dtype": ones.half()})
    assert (found.only_a, found.only_b, found.compared, found.values) == (["x"], ["y", "z"], 2, [])
    assert [(one.name, one.a, one.b) for one in found.shapes] == [("shape", "[2, 3]", "[3, 2]")]
    assert [(one.name, one.a, one.b) for one in found.dtypes] == [("dtype", "float32", "float16")]
    assert not found.is_equal
    assert not found.is_faithful


def test_containers_do_not_matter(tmp_path: Path) -> None:
    tensors: Tensors = {"b": torch.randn(5, 7), "a": torch.randn(3).bfloat16(), "c": torch.arange(4)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(dict(sorted(tensors.items())), tmp_path / "x.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for a, b in (("x.safetensors", "x.pt"), ("x.pt", "old.pt"), ("old.pt", "x.safetensors")):
        assert compared(tmp_path / a, tmp_path / b).is_equal
    byte = (tmp_path / "x.safetensors").read_bytes().index(tensors["b"].numpy().tobytes()) + 4 * 9
    flip(tmp_path / "x.safetensors", byte + 2, 6)
    (one,) = compared(tmp_path / "x.pt", tmp_path / "x.safetensors").values
    assert (one.name, one.first, one.b.offset) == ("b", (1, 2), byte)


# -- folders -------------------------------------------------------------------------------------------------------


def whole_index(key: str, index: tuple[int, ...], rank: int, shape: torch.Size) -> tuple[str, tuple[int, ...]]:
    """Where an element of a shard is in the whole parameter, at TP 2 and 4 heads."""
    if "query_key_value" in key:
        size = 32 // oracle.HEADS
        head, rest = divmod(index[0], 3 * size)
        return f"{key}.{('query', 'key', 'value')[rest // size]}", (head + 2 * rank, rest % size, *index[1:])
    axis = 1 if key.endswith(oracle.ROW_PARALLEL) else 0 if key.endswith(oracle.SPLIT_ON_ROWS) else None
    return key, tuple(i + (rank * shape[n] if n == axis else 0) for n, i in enumerate(index))


def owner(path: Path, record: str) -> str:
    """The key of the tensor in a record of a layer file: each has its own, in the order of the keys."""
    return str(list(torch.load(path))[int(record.removeprefix("data/"))])


@pytest.mark.slow
def test_a_flipped_bit_of_a_shard_is_found_in_the_whole_parameter(tmp_path: Path) -> None:
    """Also in what only other ranks than the first have, in other ranks' copies, and in the vocabulary's padding."""
    chosen = random.Random(5)
    other = tmp_path / "other"
    shutil.copytree(BLOOM.folder, other)
    layers = sorted(other.glob("global_step3/layer_*"))
    wanted = [*layers, *[path for path in layers if "model_01" in path.name], layers[1]]
    for number, path in enumerate(wanted):
        position, rank = (int(text) for text in re.findall(r"_(\d+)", path.name)[:2])
        prefix = {1: "", 8: "final_layernorm."}.get(position, f"layers.{position - 3}.")
        whole, places = path.read_bytes(), {n: at for n, at in records(path).items() if n.startswith("data/")}
        names = sorted(places, key=lambda name: -places[name][1])[: 5 if number % 2 else None]
        record = names[0] if path == layers[1] else chosen.choice(names)
        start, nbytes = places[record]
        element = nbytes // 4 - 1 if path == layers[1] else chosen.randrange(nbytes // 4)
        flip(path, start + 4 * element + chosen.randrange(4), chosen.randrange(8))
        mend(path)
        key = owner(path, record)
        old, new = torch.load(BLOOM.folder / "global_step3" / path.name)[key], torch.load(path)[key]
        index = tuple(int(i) for i in np.unravel_index(element, old.shape))
        assert (old.view(torch.int32) != new.view(torch.int32)).nonzero().tolist() == [list(index)]
        found = compared(BLOOM.folder, other)
        path.write_bytes(whole)
        name, first = whole_index(prefix + key, index, rank, old.shape)
        if rank and not f"{prefix}{key}".endswith(CUT):  # a copy of what every rank has
            name, first = f"{name} of rank {rank}", index
        (one,) = found.values
        assert (one.name, one.first, one.elements) == (name, first, 1)
        assert (one.b.file, one.b.offset) == (str(path), start + 4 * element)
        assert (one.a.file, one.a.offset) == (str(BLOOM.folder / "global_step3" / path.name), start + 4 * element)
        assert one.a.value == old[index].item()
        assert one.b.value == new[index].item() or math.isnan(new[index].item())
