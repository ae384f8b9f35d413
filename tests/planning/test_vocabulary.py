"""How many rows a vocabulary has after a conversion, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import AmbiguousError, DamagedError, UsageError
from streamconv.core.lazy import LazyTensor, Storage, View, concat
from streamconv.planning.vocabulary import VocabularyPlan, plan_vocabulary, repad

FP32 = DTYPES["float32"]
DIVIDE_BY_16: Mapping[str, Any] = {"make_vocab_size_divisible_by": 16}

# -- how many rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [None, 101, 128])
@pytest.mark.parametrize("tp", [1, 2, 3])
def test_all_stored_rows_stay_where_the_tensor_parallel_size_stays(recorded: int | None, tp: int) -> None:
    plan = plan_vocabulary(128, recorded, None, {"pad_vocab_size_to": 192}, tp, tp)
    assert (plan.stored, plan.padded, plan.true) == (128, 128, None)
    assert plan.is_verbatim
    assert "TP stays" in plan.reason


def test_a_size_that_was_said_pads_anew_even_where_the_tensor_parallel_size_stays() -> None:
    for recorded in (None, 40, 20):
        plan = plan_vocabulary(128, recorded, 40, DIVIDE_BY_16, 2, 2)
        assert (plan.stored, plan.padded, plan.true) == (128, 64, 40)
        assert not plan.is_verbatim


def test_a_size_below_the_recorded_one_would_drop_true_rows() -> None:
    with pytest.raises(UsageError, match="would drop true rows"):
        plan_vocabulary(128, 101, 40, DIVIDE_BY_16, 2, 2)


@pytest.mark.parametrize("value", ["16", 0, -64, True, [16]])
def test_a_divisor_that_is_no_number_is_damage(value: object) -> None:
    with pytest.raises(DamagedError, match="make_vocab_size_divisible_by"):
        plan_vocabulary(128, 101, None, {"make_vocab_size_divisible_by": value}, 2, 4)


def test_an_unknown_size_keeps_all_rows_where_they_divide() -> None:
    plan = plan_vocabulary(96, None, None, None, 2, 3)
    assert (plan.stored, plan.padded, plan.true) == (96, 96, None)
    assert "unknown" in plan.reason


def test_an_unknown_size_is_refused_where_the_rows_do_not_divide() -> None:
    with pytest.raises(AmbiguousError, match="100 stored rows do not divide over TP 3") as caught:
        plan_vocabulary(100, None, None, DIVIDE_BY_16, 2, 3)
    assert "--vocab-size" in str(caught.value)


def test_a_padded_size_that_comes_out_the_same_keeps_all_rows() -> None:
    plan = plan_vocabulary(256, 200, None, None, 1, 2)
    assert (plan.padded, plan.true) == (256, None)
    assert "stays" in plan.reason


@pytest.mark.parametrize(
    ("true", "divisor", "tp", "padded"),
    [
        (101, 16, 4, 128),
        (101, 16, 3, 144),
        (101, 1, 8, 104),
        (96, 16, 2, 96),
        (97, 16, 2, 128),
        (50257, 128, 2, 50432),
        (50257, 128, 8, 51200),
        (250880, 128, 4, 250880),
    ],
)
def test_rows_are_padded_to_a_multiple_of_divisor_and_tensor_parallel_size(
    true: int, divisor: int, tp: int, padded: int
) -> None:
    plan = plan_vocabulary(true + 1000, true, None, {"make_vocab_size_divisible_by": divisor}, 1 if tp > 1 else 2, tp)
    assert (plan.padded, plan.true) == (padded, true)
    assert f"a multiple of {divisor} x TP {tp}" in plan.reason


@pytest.mark.parametrize("args", [None, {}, {"make_vocab_size_divisible_by": None}, {"hidden_size": 4}])
def test_without_a_divisor_it_is_megatrons_128(args: Mapping[str, Any] | None) -> None:
    assert plan_vocabulary(128, 101, None, args, 1, 2).padded == 256


def test_a_size_to_pad_to_counts_before_the_divisor() -> None:
    args = {"pad_vocab_size_to": 250880, "make_vocab_size_divisible_by": 128}
    plan = plan_vocabulary(250624, 250000, None, args, 4, 8)
    assert (plan.padded, plan.true) == (250880, 250000)
    assert "pad_vocab_size_to 250880" in plan.reason


@pytest.mark.parametrize("fixed", [None, 100, 130])
def test_a_size_to_pad_to_that_is_too_small_or_does_not_divide_gives_way_to_the_divisor(fixed: int | None) -> None:
    plan = plan_vocabulary(128, 101, None, {"pad_vocab_size_to": fixed, **DIVIDE_BY_16}, 1, 4)
    assert plan.padded == 128
    plan = plan_vocabulary(112, 101, None, {"pad_vocab_size_to": fixed, **DIVIDE_BY_16}, 1, 4)
    assert (plan.padded, plan.true) == (128, 101)
    assert "a multiple of 16 x TP 4" in plan.reason


def test_a_size_that_was_said_counts_before_the_recorded_one() -> None:
    plan = plan_vocabulary(192, 101, 110, DIVIDE_BY_16, 1, 2)
    assert (plan.padded, plan.true) == (128, 110)


@pytest.mark.parametrize("said", [129, 0, -5])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_vocabulary_larger_than_what_is_stored_or_empty_is_refused(said: int, tp: int) -> None:
    with pytest.raises(UsageError, match=f"a vocabulary of {said} true rows: 128 rows are stored"):
        plan_vocabulary(128, 101, said, DIVIDE_BY_16, 1, tp)


# -- what they hold --------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> LazyTensor:
    """Ten rows of three over two ranks in one file each, rank 1 behind 16 bytes of something else."""
    shards = []
    for rank in range(2):
        path = tmp_path / f"rank{rank}"
        values = np.arange(15, dtype=np.float32) + 15 * rank
        path.write_bytes(bytes(16 * rank) + values.tobytes())
        storage = Storage(path, 16 * rank, 60, "0")
        shards.append(LazyTensor.stored(View(storage, FP32, 0, (3, 1)), (5, 3)))
    return concat(shards, 0)


ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.mark.parametrize(("true", "padded"), [(7, 12), (7, 8), (10, 16), (5, 8), (1, 4), (6, 7)])
def test_new_rows_repeat_the_last_true_one(true: int, padded: int, stored: LazyTensor) -> None:
    tensor = repad(stored, VocabularyPlan(10, padded, true, ""))
    assert tensor.shape == (padded, 3)
    values = tensor.numpy()
    assert np.array_equal(values[:true], ROWS[:true])
    assert np.array_equal(values[true:], np.tile(ROWS[true - 1], (padded - true, 1)))


def test_new_rows_are_marked_as_fill_and_true_ones_are_not(stored: LazyTensor) -> None:
    tensor = repad(stored, VocabularyPlan(10, 12, 7, ""))
    assert sum(piece.shape[0] for piece in tensor.pieces if piece.fill) == 5
    assert all(piece.start[0] >= 7 for piece in tensor.pieces if piece.fill)


def test_a_cut_of_the_new_rows_still_holds_the_last_true_one(stored: LazyTensor) -> None:
    tensor = repad(stored, VocabularyPlan(10, 12, 7, ""))
    for rank in range(4):
        rows = tensor.slice(0, 3 * rank, 3 * rank + 3).numpy()
        assert np.array_equal(rows, ROWS[np.minimum(np.arange(3 * rank, 3 * rank + 3), 6)])


@pytest.mark.parametrize(("true", "padded"), [(7, 7), (5, 5), (10, 10)])
def test_without_padding_true_rows_are_all_there_is(true: int, padded: int, stored: LazyTensor) -> None:
    tensor = repad(stored, VocabularyPlan(10, padded, true, ""))
    assert np.array_equal(tensor.numpy(), ROWS[:true])
    assert not any(piece.fill for piece in tensor.pieces)


def test_a_verbatim_vocabulary_is_the_stored_tensor_itself(stored: LazyTensor) -> None:
    assert repad(stored, VocabularyPlan(10, 10, None, "")) is stored
    assert np.array_equal(stored.numpy(), ROWS)


@pytest.mark.parametrize(
    ("divisor", "source_tp", "tp", "said"),
    [
        (10**18, 2, 1, "make_vocab_size_divisible_by is 1000000000000000000, not a number above 0 and below 2^31"),
        (2**30, 1, 2, "a vocabulary padded to 2147483648 rows"),
    ],
)
def test_a_divisor_that_no_vocabulary_has_is_damage(divisor: int, source_tp: int, tp: int, said: str) -> None:
    with pytest.raises(DamagedError, match=re.escape(said)):
        plan_vocabulary(112, 101, None, {"make_vocab_size_divisible_by": divisor}, source_tp, tp)
