"""safetensors files: equal to the safetensors package, and strict about what tiles the data."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv.containers.safetensors.reader import METADATA, open_safetensors
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, SourceError, StreamconvError, UnsafeError, UnsupportedError
from tests.containers.torch_save.test_zip_reader import random_tensor, read_nbytes, same

oracle = pytest.importorskip("safetensors")
oracle_torch = pytest.importorskip("safetensors.torch")


def entry(start: int = 0, end: int = 48, shape: Any = (3, 4), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def by_hand(path: Path, header: Any, data: bytes = bytes(48)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def accepted_by_the_package(path: Path) -> bool:
    try:
        with oracle.safe_open(path, "pt") as file:
            return file.keys() is not None
    except (oracle.SafetensorError, OSError):
        return False


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "complex128"])
def test_each_dtype_reads_bit_for_bit(name: str, tmp_path: Path) -> None:
    tree = {"matrix": random_tensor(name, 6, 5), "scalar": random_tensor(name, 1)[0].clone()}
    tree["empty"] = random_tensor(name, 0, 3)
    oracle_torch.save_file(tree, tmp_path / "a.safetensors")
    file = open_safetensors(tmp_path / "a.safetensors")
    loaded = oracle_torch.load_file(tmp_path / "a.safetensors")
    found = file.tensors()
    assert found.keys() == loaded.keys() == tree.keys()
    assert all(same(found[key], value) for key, value in loaded.items())


def test_names_with_dots_and_the_words_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tree = {"a.b": torch.ones(3), "a": torch.zeros(2, 2), "ü.0": torch.ones(1)}
    oracle_torch.save_file(tree, path, {"format": "pt"})
    file = open_safetensors(path)
    assert file.kind == "safetensors"
    assert file.tensors().keys() == tree.keys()
    assert file.state[METADATA] == {"format": "pt"}
    assert not file.crc_disabled
    assert file.globals == {}


def test_records_are_the_tensors_that_have_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    oracle_torch.save_file({"a": torch.ones(3), "e": torch.ones(0), "b": torch.ones(2)}, path)
    file = open_safetensors(path)
    assert {(record.name, record.nbytes, record.crc) for record in file.records()} == {("a", 12, None), ("b", 8, None)}
    assert file.storages.keys() == {"a", "b", "e"}


def test_a_huge_file_opens_without_being_read(tmp_path: Path) -> None:
    numel = 1 << 38
    path = by_hand(tmp_path / "a", {"big": entry(0, 4 * numel, [numel])}, b"")
    os.truncate(path, path.stat().st_size + 4 * numel)
    before = read_nbytes()
    assert open_safetensors(path).state["big"].numpy()[-1] == 0
    assert read_nbytes() - before < 64 << 10


def test_an_empty_header_is_a_file_of_no_tensors(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a", {}, b"")
    assert accepted_by_the_package(path)
    assert open_safetensors(path).tensors() == {}


def test_a_file_cut_off_or_too_long_is_damaged(tmp_path: Path) -> None:
    oracle_torch.save_file({"w": torch.arange(4.0), "v": torch.ones(3)}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            open_safetensors(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(DamagedError):
        open_safetensors(path)


LONG = '{"a":' * 200_000
HEADERS: dict[str, tuple[Any, type[StreamconvError]]] = {
    "overlap": ({"a": entry(), "b": entry(44, 48, [1])}, DamagedError),
    "the same bytes twice": ({"a": entry(), "b": entry()}, DamagedError),
    "a hole": ({"a": entry(0, 4, [1]), "b": entry(8, 48, [10])}, DamagedError),
    "a hole at the beginning": ({"a": entry(4, 48, [11])}, DamagedError),
    "bytes left over": ({"a": entry(0, 44, [11])}, DamagedError),
    "behind the end": ({"a": entry(0, 52, [13])}, DamagedError),
    "offsets turned round": ({"a": entry(48, 0)}, DamagedError),
    "too few bytes for the shape": ({"a": entry(0, 48, [13])}, DamagedError),
    "a negative shape": ({"a": entry(0, 48, [-3, -4])}, DamagedError),
    "a negative offset": ({"a": entry(-48, 0)}, DamagedError),
    "a float shape": ({"a": entry(0, 48, [12.0])}, DamagedError),
    "a bool shape": ({"a": entry(0, 4, [True])}, DamagedError),
    "a huge shape": ({"a": entry(0, 48, [1 << 63, 1 << 63])}, DamagedError),
    "a shape of a thousand axes": ({"a": entry(0, 48, [12, *[1] * 1000])}, DamagedError),
    "a shape that is no list": ({"a": entry(0, 48, 12)}, DamagedError),
    "three offsets": ({"a": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48, 48]}}, DamagedError),
    "no dtype": ({"a": {"shape": [12], "data_offsets": [0, 48]}}, DamagedError),
    "a field more": ({"a": entry() | {"scale": 2}}, DamagedError),
    "a dtype that is a number": ({"a": entry(dtype=5)}, DamagedError),
    "an unknown dtype": ({"a": entry(dtype="F31")}, UnsupportedError),
    "a dtype that is not ours": ({"a": entry(0, 48, [24], "U16")}, UnsupportedError),
    "an entry that is none": ({"a": 5}, DamagedError),
    "words that are numbers": ({METADATA: {"format": 5}, "a": entry()}, DamagedError),
    "words that are a list": ({METADATA: ["format"], "a": entry()}, DamagedError),
    "a list": ([1], DamagedError),
    "a space first": (b" {}", DamagedError),
    "no JSON": (b"{hello}", DamagedError),
    "no UTF-8": (b'{"\xff": 1}', DamagedError),
    "half a character": (b'{"\\ud800": {"dtype":"F32","shape":[12],"data_offsets":[0,48]}}', DamagedError),
    "a name twice": (b'{"a":{"dtype":"U8","shape":[48],"data_offsets":[0,48]},"a":5}', DamagedError),
    "a field twice": (b'{"a":{"dtype":"U8","dtype":"I8","shape":[48],"data_offsets":[0,48]}}', DamagedError),
    "a number of 10000 digits": (b'{"a":' + b"1" * 10_000 + b"}", DamagedError),
    "nested without end": (LONG.encode(), DamagedError),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_makes_no_sense_is_refused(case: str, tmp_path: Path) -> None:
    header, error = HEADERS[case]
    path = by_hand(tmp_path / "a", header)
    with pytest.raises(error):
        open_safetensors(path)


def test_what_the_package_refuses_is_refused(tmp_path: Path) -> None:
    """The other way round there are three exceptions: we refuse fields, types and names that it lets pass."""
    lenient = {
        case for case, (header, _) in HEADERS.items() if accepted_by_the_package(by_hand(tmp_path / case, header))
    }
    assert lenient <= {"a field more", "a dtype that is not ours", "a name twice", "a shape of a thousand axes"}


@pytest.mark.parametrize(
    ("length", "error"),
    [(100_000_001, UnsafeError), (1 << 63, UnsafeError), ((1 << 64) - 1, UnsafeError), (900, DamagedError)],
)
def test_a_header_length_out_of_bounds_is_refused(length: int, error: type[StreamconvError], tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(error):
        open_safetensors(path)


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="F31"):
        open_safetensors(by_hand(tmp_path / "a", {"a": entry(dtype="F31")}))


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(SourceError):
            open_safetensors(path)


def test_changed_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    oracle_torch.save_file({"w": torch.arange(3.0), "n": torch.ones(2)}, tmp_path / "whole", {"format": "pt"})
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "changed"
    rng = random.Random(8)
    for place in [*range(len(data))] * 2:
        changed = bytearray(data)
        changed[place] = rng.choice((0, 1, 0xFF, 0x80, changed[place] ^ 1 << rng.randrange(8), rng.randrange(256)))
        path.write_bytes(changed)
        try:
            str(open_safetensors(path).tensors()).encode()
        except StreamconvError:
            continue
        assert accepted_by_the_package(path), place
