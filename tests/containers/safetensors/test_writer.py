"""Our file is one that the safetensors package reads, and where the orders agree the one that it writes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv.containers.pickles.writer import StoredTensor
from streamconv.containers.safetensors.reader import DTYPE_NAMES, MAX_HEADER_NBYTES, METADATA, open_safetensors
from streamconv.containers.safetensors.writer import SafetensorsLayout, plan_safetensors_file
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import UnsupportedError
from tests.containers.torch_save.test_zip_reader import as_bytes, random_tensor, same

oracle = pytest.importorskip("safetensors")
oracle_numpy = pytest.importorskip("safetensors.numpy")
oracle_torch = pytest.importorskip("safetensors.torch")

WORDS = {"format": "pt"}
STORABLE = sorted(DTYPE_NAMES.values())


def plan(tree: Mapping[str, Any]) -> SafetensorsLayout:
    """The layout of a tree of torch tensors."""
    return plan_safetensors_file(
        {
            name: StoredTensor(key, DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
            for key, (name, tensor) in enumerate(tree.items())
        }
    )


def written(tree: Mapping[str, Any]) -> bytes:
    """The file of a tree: each byte of it is laid exactly once."""
    layout = plan(tree)
    data = bytearray(layout.nbytes)
    pieces = list(layout.frame({}))
    for (offset, nbytes), tensor in zip(layout.storages, tree.values(), strict=True):
        content = as_bytes(tensor)
        assert len(content) == nbytes
        pieces.append((offset, content))
    for offset, content in pieces:
        data[offset : offset + len(content)] = content
    assert len(data) == layout.nbytes == sum(len(content) for _, content in pieces)
    return bytes(data)


def header_of(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def check(tree: Mapping[str, Any], path: Path) -> None:
    """The package and our own reader find in the file what was put there, aligned."""
    data = written(tree)
    path.write_bytes(data)
    with oracle.safe_open(path, "pt") as file:
        assert file.metadata() == WORDS
        assert set(file.keys()) == tree.keys()
        for name, tensor in tree.items():
            assert file.get_slice(name).get_shape() == list(tensor.shape)
            equal(file.get_tensor(name), tensor)
    loaded = oracle_torch.load(data)
    for name, tensor in tree.items():
        equal(loaded[name], tensor)
    ours = open_safetensors(path)
    assert ours.state.keys() == {METADATA, *tree}
    assert ours.state[METADATA] == WORDS
    layout = plan(tree)
    for (offset, nbytes), (name, tensor) in zip(layout.storages, tree.items(), strict=True):
        assert same(ours.state[name], tensor), name
        assert (ours.storages[name].offset, ours.storages[name].nbytes) == (offset, nbytes)
        assert offset % tensor.element_size() == 0
    assert len(layout.header) % 8 == 0


def equal(one: Any, other: Any) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert as_bytes(one) == as_bytes(other)


def mixed() -> dict[str, Any]:
    """Tensors of each type, those of odd sizes and narrow types first."""
    names = sorted(STORABLE, key=lambda name: DTYPES[name].itemsize)
    tree = {f"{name}.{kind}": random_tensor(name, *shape) for name in names for kind, shape in SHAPES.items()}
    return tree | {f"{name}.scalar": random_tensor(name, 1)[0].clone() for name in names}


SHAPES = {"matrix": (3, 5), "row": (7,), "empty": (0,), "hollow": (4, 0, 2), "one": (1, 1, 1)}
NAMES = [
    "", "a", "a.b", "a b", "ü.0", "Größe 😀", '"', '\\"', "\\", "/", "'", "{}", "\n\t\r\b\f", "\0", "\x1f", "\x7f",
    "\u2028", "\ufffe", "\U0010ffff", "__metadata", "__metadata__.x", "data_offsets",
]  # fmt: skip
TREES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "one tensor": {"w": torch.arange(12.0).reshape(3, 4)},
    "a scalar": {"w": torch.tensor(1.5)},
    "an empty tensor": {"w": torch.empty(0, 3)},
    "one name a type": {f"{8 - DTYPES[name].itemsize}{name}": random_tensor(name, 3) for name in STORABLE},
    "every type": mixed(),
    "strange names": {name: torch.full((n + 1,), n, dtype=torch.int16) for n, name in enumerate(NAMES)},
    "many": {f"layers.{n}.weight": torch.full((n % 5, 3), n, dtype=torch.bfloat16) for n in range(300)},
}


@pytest.mark.parametrize("name", TREES)
def test_the_package_and_our_reader_find_each_tensor(name: str, tmp_path: Path) -> None:
    check(TREES[name], tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", TREES)
def test_in_the_packages_order_the_file_is_its_own_byte_for_byte(name: str) -> None:
    theirs = oracle_torch.save(TREES[name], WORDS)
    order = [key for key in header_of(theirs) if key != METADATA]
    assert written({key: TREES[name][key] for key in order}) == theirs


@pytest.mark.parametrize("length", range(1, 10))
def test_padding_is_the_packages_for_each_length_of_the_header(length: int) -> None:
    tree = {"n" * length: torch.ones(3, dtype=torch.uint8)}
    assert written(tree) == oracle_torch.save(tree, WORDS)


def test_numpy_users_read_the_file_too() -> None:
    tree = {"w": random_tensor("float16", 3, 5), "n": torch.arange(4), "bits": torch.tensor([True, False, True])}
    loaded = oracle_numpy.load(written(tree))
    assert loaded.keys() == tree.keys()
    for name, tensor in tree.items():
        assert loaded[name].dtype == tensor.numpy().dtype
        assert loaded[name].shape == tuple(tensor.shape)
        assert loaded[name].tobytes() == as_bytes(tensor)


def test_tensors_of_one_width_keep_the_order_in_which_they_are_given() -> None:
    types = {"z": torch.int32, "b": torch.bool, "y": torch.float32, "q": torch.int64, "a": torch.uint8}
    tree = {name: torch.zeros(3, dtype=dtype) for name, dtype in types.items()}
    header = header_of(written(tree))
    assert list(header) == [METADATA, "q", "z", "y", "b", "a"]
    layout = plan(tree)
    start = len(layout.header)
    # By key, that is in the order of the tree, not of the file.
    assert layout.storages == ((start + 24, 12), (start + 48, 3), (start + 36, 12), (start, 24), (start + 51, 3))


def test_the_frame_is_the_header_alone_whatever_the_checksums() -> None:
    layout = plan(TREES["one tensor"])
    assert list(layout.frame({})) == list(layout.frame({0: 7})) == [(0, layout.header)]
    assert struct.unpack("<Q", layout.header[:8]) == (len(layout.header) - 8,)


def test_the_package_reads_values_behind_4_gib(tmp_path: Path) -> None:
    tree = {
        "big": StoredTensor(0, DTYPES["int64"], (1 << 29, 1)),
        "last": StoredTensor(1, DTYPES["float32"], (3,)),
    }
    layout = plan_safetensors_file(tree)
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(layout.header)
        file.seek(layout.storages[1][0])
        file.write(struct.pack("<3f", 1.5, -2.0, 0.25))
        assert file.tell() == layout.nbytes
    with oracle.safe_open(path, "pt") as opened:
        assert opened.get_tensor("last").tolist() == [1.5, -2.0, 0.25]
        assert opened.get_slice("big").get_shape() == [1 << 29, 1]


tensors = st.tuples(st.sampled_from(STORABLE), st.lists(st.integers(0, 4), max_size=4))
names = st.text(max_size=8).filter(lambda name: name != METADATA)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.dictionaries(names, tensors, max_size=8))
def test_any_tree_is_read_back(kinds: dict[str, tuple[str, list[int]]], tmp_path: Path) -> None:
    tree = {name: random_tensor(dtype, prod(shape)).reshape(shape) for name, (dtype, shape) in kinds.items()}
    check(tree, tmp_path / "a.safetensors")


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(1,), (1, 0), (0, 2), (0, 1, 0), (0, 0)])
def test_keys_that_do_not_count_up_or_have_two_names_are_refused(keys: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="count up from 0"):
        plan_safetensors_file({f"w{n}": StoredTensor(key, DTYPES["uint8"], (1,)) for n, key in enumerate(keys)})


@pytest.mark.parametrize("name", sorted(DTYPES.keys() - STORABLE))
def test_a_type_that_safetensors_has_not_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}\n.*the.tensor"):
        plan_safetensors_file({"the.tensor": StoredTensor(0, DTYPES[name], (2,))})
    with pytest.raises((KeyError, ValueError, oracle.SafetensorError)):
        oracle_torch.save({"the.tensor": torch.ones(2, dtype=getattr(torch, name))})


@pytest.mark.parametrize("name", [METADATA, "\ud800", "a\udcffb"])
@pytest.mark.parametrize("dtype", ["uint8", "complex128"])
def test_a_name_that_no_tensor_can_have_is_refused(name: str, dtype: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        plan_safetensors_file({name: StoredTensor(0, DTYPES[dtype], (1,))})
    str(caught.value).encode()


@pytest.mark.slow
def test_the_longest_header_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    def longest(more: int) -> dict[str, StoredTensor]:
        return {"n" * (MAX_HEADER_NBYTES - overhead + more): StoredTensor(0, DTYPES["uint8"], (1,))}

    text = plan_safetensors_file({"": StoredTensor(0, DTYPES["uint8"], (1,))}).header[8:]
    overhead = len(text.rstrip(b" "))
    layout = plan_safetensors_file(longest(0))
    assert len(layout.header) == 8 + MAX_HEADER_NBYTES
    path = tmp_path / "a.safetensors"
    path.write_bytes(layout.header + b"\7")
    with oracle.safe_open(path, "pt") as file:
        assert file.get_tensor(next(iter(file.keys()))).tolist() == [7]
    assert len(open_safetensors(path).tensors()) == 1
    with pytest.raises(UnsupportedError, match=f"{MAX_HEADER_NBYTES + 8} bytes"):
        plan_safetensors_file(longest(1))
