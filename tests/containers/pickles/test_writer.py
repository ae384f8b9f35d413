"""Our pickle of a state dict is CPython's, byte for byte."""

from __future__ import annotations

import argparse
import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.writer import StoredTensor, contiguous_strides, dumps, is_plain
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import UnsupportedError

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()))
keys = st.text() | st.integers()
names = st.text("abcxyz_", min_size=1, max_size=9)
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner)
        | st.dictionaries(keys, inner).map(OrderedDict)
        # CPython itself has written an empty namespace in two ways: with its state before 3.11, without it since.
        | st.dictionaries(names, inner, min_size=1).map(lambda attributes: argparse.Namespace(**attributes))
    ),
    max_leaves=30,
)


def pickled(tree: Any) -> bytes:
    """Protocol 2 from CPython's own pickler in C, as torch.save uses it."""
    buffer = io.BytesIO()
    pickle.Pickler(buffer, 2).dump(tree)
    return buffer.getvalue()


@pytest.mark.slow
@given(tree=plain)
@settings(max_examples=100, deadline=None)
def test_plain_data_is_pickled_as_cpython_pickles_it(tree: Any) -> None:
    assert dumps(tree) == pickled(tree)


EDGES = sorted({sign * (1 << bits) + step for bits in range(130) for sign in (1, -1) for step in (-1, 0, 1)})


def test_ints_of_all_sizes_are_pickled_as_cpython_pickles_them() -> None:
    wrong = [value for value in EDGES if dumps(value) != pickled(value)]
    assert wrong == []


@pytest.mark.parametrize("bits", [2039, 2040, 2048, 4096])
@pytest.mark.parametrize("sign", [1, -1])
def test_ints_of_more_than_255_bytes_are_pickled_as_cpython_pickles_them(bits: int, sign: int) -> None:
    for value in (sign << bits, (sign << bits) - 1, (sign << bits) + 1):
        assert dumps([value]) == pickled([value])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 999, 1000, 1001, 2000, 2001])
@pytest.mark.parametrize(
    "kind", [list, tuple, dict.fromkeys, OrderedDict.fromkeys], ids=["list", "tuple", "dict", "od"]
)
def test_containers_of_any_length_are_batched_as_cpython_batches_them(kind: Any, count: int) -> None:
    tree = kind(range(count))
    assert dumps(tree) == pickled(tree)


def test_what_is_there_twice_is_recalled_as_cpython_recalls_it() -> None:
    text, row, table = "a text", (1, 2), {"k": 1.5}
    args = argparse.Namespace(text=text, table=table)
    tree = [text, text, row, row, table, [table], args, args, OrderedDict(a=row), (), ()]
    assert dumps(tree) == pickled(tree)


def test_a_memo_of_more_than_256_objects_uses_long_indices_as_cpython_does() -> None:
    texts = [f"text {number}" for number in range(300)]
    tree = [texts, texts[3], texts[280], texts[255], texts[253]]
    assert dumps(tree) == pickled(tree)


def test_a_torch_dtype_is_named_as_torch_names_it() -> None:
    ours = {name: Global("torch", name) for name in ("bfloat16", "float16", "float32")}
    theirs = {name: getattr(torch, name) for name in ours}
    assert dumps([ours, ours["bfloat16"]]) == pickled([theirs, torch.bfloat16])


@pytest.mark.parametrize(
    "value", [b"raw", {1}, 1j, object(), bytearray(b"a"), torch.ones(1)], ids=lambda v: type(v).__name__
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="not plain data"):
        dumps({"a": value})


def test_a_dtype_without_a_storage_class_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="float8_e4m3fn"):
        dumps({"w": StoredTensor(0, DTYPES["float8_e4m3fn"], (2,))})


@given(shape=st.lists(st.integers(0, 4), max_size=5).map(tuple))
@settings(max_examples=100, deadline=None)
def test_contiguous_strides_are_those_of_torch(shape: tuple[int, ...]) -> None:
    assert contiguous_strides(shape) == torch.empty(shape).stride()


def test_plain_is_what_any_reader_can_open() -> None:
    assert is_plain({"a": [1, 2.5, None, True, ("x", {3: Global("torch", "bfloat16")})]})
    for value in (Global("os", "system"), Global("torch", "load"), {"a": [b"raw"]}, {(1,): 2}, object()):
        assert not is_plain(value)


def test_what_holds_itself_is_not_plain() -> None:
    tree: list[Any] = []
    tree.append(tree)
    assert not is_plain(tree)
