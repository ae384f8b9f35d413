"""Element types as torch has them, and casts that round as torch's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from streamconv.core.dtypes import CAST_TYPES, DTYPES, cast_into, dtype_from_storage, dtype_named
from streamconv.core.errors import DifferenceError
from streamconv.core.kinds import InvalidValue

WEIGHTS = ("float32", "bfloat16", "float16")
CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
HALF_MAX = 65504.0


def as_torch(array: npt.NDArray[Any], name: str) -> torch.Tensor:
    """The same bytes as a tensor."""
    carrier = {2: np.int16, 4: np.int32, 8: np.int64}[array.itemsize]
    return torch.from_numpy(array.view(carrier)).view(getattr(torch, name))


def patterns(name: str) -> npt.NDArray[Any]:
    """Every value of a type of two bytes; of the larger ones all exponents, the edges of each and many others."""
    dtype = DTYPES[name]
    if dtype.itemsize == 2:
        return np.arange(2**16, dtype=np.uint16).view(dtype.numpy)
    rng = np.random.default_rng(7)
    unsigned, exponents, fraction = (np.uint32, 2**9, 23) if dtype.itemsize == 4 else (np.uint64, 2**12, 52)
    heads = np.arange(exponents, dtype=unsigned) << unsigned(fraction)
    one = unsigned(1)
    tails = [unsigned(0), one, (one << unsigned(fraction)) - one]
    for bit in range(fraction):  # the ties of every shorter fraction, and their neighbours
        tie = one << unsigned(bit)
        tails += [tie, tie - one, tie + one, tie | (tie << one) & ((one << unsigned(fraction)) - one)]
    edges = (heads[:, None] | np.array(tails, unsigned)[None, :]).ravel()
    return np.concatenate([edges, rng.integers(0, np.iinfo(unsigned).max, 200_000, unsigned)]).view(dtype.numpy)


def cast(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    target = np.empty(values.shape, DTYPES[name].numpy)
    cast_into(values, target)
    return target


def assert_casts_alike(values: npt.NDArray[Any], source: str, target: str) -> None:
    with np.errstate(all="ignore"):
        if target == "float16" and source != "float16":
            expected = as_torch(values, source).to(torch.float16)
            finite = torch.isfinite(as_torch(values, source))
            values = values[(~(finite & torch.isinf(expected))).numpy()]
        expected = as_torch(values, source).to(getattr(torch, target))
        actual = as_torch(cast(values, target), target)
    nan = torch.isnan(expected)
    assert torch.equal(torch.isnan(actual), nan)
    bits = CARRIERS[expected.element_size()]
    different = (actual.view(bits) != expected.view(bits)) & ~nan
    count = int(different.sum())
    first = different.nonzero()[:1].flatten()
    assert count == 0, f"{count}, first: {as_torch(values, source)[first]} {actual[first]} {expected[first]}"


@pytest.mark.parametrize("source", WEIGHTS)
@pytest.mark.parametrize("target", WEIGHTS)
def test_a_cast_gives_torchs_bits(source: str, target: str) -> None:
    assert_casts_alike(patterns(source), source, target)


@pytest.mark.parametrize("target", WEIGHTS)
def test_a_cast_from_double_gives_torchs_bits(target: str) -> None:
    assert_casts_alike(patterns("float64"), "float64", target)


@pytest.mark.parametrize("source", WEIGHTS)
@pytest.mark.parametrize("target", WEIGHTS)
def test_not_a_number_stays_not_a_number(source: str, target: str) -> None:
    values = patterns(source)
    values = values[torch.isnan(as_torch(values, source)).numpy()]
    assert values.size > 100
    assert torch.isnan(as_torch(cast(values, target), target)).all()


@pytest.mark.parametrize("source", WEIGHTS)
@pytest.mark.parametrize("target", WEIGHTS)
def test_infinity_and_the_sign_of_zero_stay(source: str, target: str) -> None:
    values = np.array([np.inf, -np.inf, 0.0, -0.0], DTYPES[source].numpy)
    result = cast(values, target).astype(np.float64)
    assert result.tolist() == [np.inf, -np.inf, 0.0, 0.0]
    assert np.signbit(result).tolist() == [False, True, False, True]


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float64"])
def test_a_finite_value_that_half_precision_cannot_hold_is_refused_with_the_count(source: str) -> None:
    values = np.zeros((3, 5), DTYPES[source].numpy)
    values[0, 1], values[1, 2], values[2, 3], values[2, 4] = np.inf, 98304.0, -(2.0**30), np.nan
    with pytest.raises(DifferenceError, match=r"2 finite values exceed 65504, the first is 98304"):
        cast(values, "float16")


def test_the_last_value_that_rounds_into_half_precision_is_not_refused() -> None:
    edge = np.float32(65520)  # half way between 65504 and what would be 65536: the tie goes to the even 65536
    below = np.nextafter(edge, np.float32(0))
    assert cast(np.array([below, -below], np.float32), "float16").tolist() == [HALF_MAX, -HALF_MAX]
    for value in (edge, -edge):
        with pytest.raises(DifferenceError, match="1 finite values exceed"):
            cast(np.array([1, value], np.float32), "float16")


def test_half_precision_to_itself_may_hold_infinities() -> None:
    values = np.array([np.inf, 1, -np.inf], np.float16)
    assert cast(values, "float16").tobytes() == values.tobytes()


def test_a_cast_into_a_view_that_is_strided_fills_it_alone() -> None:
    target = np.full((4, 6), 7, np.float16)
    cast_into(np.arange(6, dtype=np.float32).reshape(2, 3).T, target[1:, ::3])
    assert target[1:, ::3].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (target[0] == 7).all()
    assert (np.delete(target, [0, 3], axis=1) == 7).all()


def test_the_table_agrees_with_torch() -> None:
    for dtype in DTYPES.values():
        known = getattr(torch, dtype.name)
        assert torch.empty(0, dtype=known).element_size() == dtype.itemsize == dtype.numpy.itemsize
        assert known.is_floating_point == dtype.is_floating
        assert str(dtype) == dtype.name
        assert dtype_named(dtype.name) is dtype


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_storage_classes_are_torchs() -> None:
    for dtype in DTYPES.values():
        if dtype.storage is not None:
            assert getattr(torch, dtype.storage).dtype == getattr(torch, dtype.name)
            assert dtype_from_storage(dtype.storage) is dtype
    assert dtype_from_storage("UntypedStorage") is None
    assert dtype_named("no_such_type") is None


def test_numpys_types_hold_torchs_bytes() -> None:
    for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        tensor = torch.tensor([1.0, -2.5, 0.375, 0.0]).to(getattr(torch, name))
        carrier = CARRIERS[tensor.element_size()]
        array = tensor.view(carrier).numpy().view(DTYPES[name].numpy)
        assert array.astype(np.float64).tolist() == tensor.double().tolist(), name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("fp32", "float32"), "float32"),
        (("bf16", "bfloat16"), "bfloat16"),
        (("fp16", "half", "float16"), "float16"),
        (("fp64", "float64"), "float64"),
    ],
)
def test_a_type_has_a_long_and_a_short_name(words: tuple[str, ...], name: str) -> None:
    for word in words:
        assert CAST_TYPES.read(word) is CAST_TYPES.read(word.upper()) is DTYPES[name]


@pytest.mark.parametrize("word", ["", "int8", "int64", "bool", "float8_e4m3fn", "complex64", "bf32", "FloatStorage"])
def test_what_weights_cannot_be_cast_to_is_refused(word: str) -> None:
    with pytest.raises(InvalidValue, match="no such choice"):
        CAST_TYPES.read(word)
