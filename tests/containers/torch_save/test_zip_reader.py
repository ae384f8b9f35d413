"""Files of ``torch.save``: every tensor bit for bit as torch loads it, only metadata read, damage refused by class."""

from __future__ import annotations

import argparse
import math
import os
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from streamconv.containers.pickles.writer import StoredTensor
from streamconv.containers.torch_save.zip_reader import open_torch_zip
from streamconv.containers.torch_save.zip_writer import plan_torch_file
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, SourceError, StreamconvError, UnsafeError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from tests import oracle
from tests.containers.torch_save.by_hand import Call, Ref, pickled
from tests.places import FIXTURES, ROOT

FILES = sorted(FIXTURES.rglob("*.pt"))


def as_bytes(tensor: Any) -> bytes:
    """The bits of a torch tensor, row by row."""
    if not tensor.numel():
        return b""
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def same(lazy: LazyTensor, tensor: Any) -> bool:
    """Whether a lazy tensor has the shape, the dtype and the bits of a torch tensor, by each of its two readings."""
    again = lazy.torch()
    return (
        lazy.shape == tuple(tensor.shape) == tuple(again.shape)
        and f"torch.{lazy.dtype}" == str(tensor.dtype) == str(again.dtype)
        and lazy.numpy().tobytes() == as_bytes(tensor) == as_bytes(again)
    )


def torch_tensors(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The tensors that torch.load gave, by dotted path; an object's attributes stand where its keys would."""
    if isinstance(tree, torch.Tensor):
        yield ".".join(map(str, path)), tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from torch_tensors(value, (*path, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from torch_tensors(value, (*path, index))
    elif hasattr(tree, "__dict__"):
        # A stub of the oracle keeps what it was called with and its state apart.
        attributes = dict(vars(tree))
        for index, value in enumerate(attributes.pop("args", ()) if "Stub" in str(type(tree).__mro__) else ()):
            yield from torch_tensors(value, (*path, index))
        state = attributes.pop("state", {}) if "Stub" in str(type(tree).__mro__) else {}
        yield from torch_tensors(attributes | state, path)


def saved(tmp_path: Path, tree: Any, name: str = "a.pt") -> Path:
    torch.save(tree, tmp_path / name)
    return tmp_path / name


# -- equal to torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted({path.relative_to(FIXTURES).parts[1] for path in FILES}))
def test_every_tensor_of_every_fixture_is_torchs_bit_for_bit(folder: str) -> None:
    paths = [path for path in FILES if folder in path.parts]
    for path in paths:
        found = open_torch_zip(path).tensors()
        expected = dict(torch_tensors(oracle.load_stubbed(path)))
        assert list(found) == list(expected), path
        assert all(same(found[name], tensor) for name, tensor in expected.items()), path


@pytest.mark.slow
def test_every_tensor_is_what_torch_maps() -> None:
    paths = [path for path in FILES if path.name.startswith("layer_")]
    assert len(paths) > 100
    for path in paths:
        found = open_torch_zip(path).tensors()
        expected = torch.load(path, weights_only=True, mmap=True)
        assert all(same(found[name], tensor) for name, tensor in expected.items()), path


def random_tensor(name: str, *shape: int) -> Any:
    """Random bits, which hold NaN, infinities and subnormals, as a tensor of a dtype."""
    if 0 in shape:
        return torch.empty(shape, dtype=getattr(torch, name))
    raw = np.random.default_rng(3).integers(0, 256, math.prod(shape) * DTYPES[name].itemsize, dtype=np.uint8)
    if name == "bool":
        raw &= 1
    return torch.frombuffer(bytearray(raw), dtype=getattr(torch, name)).reshape(shape)


@pytest.mark.parametrize("name", DTYPES)
def test_each_dtype_reads_bit_for_bit(name: str, tmp_path: Path) -> None:
    tree = {
        "matrix": random_tensor(name, 64, 48),
        "scalar": random_tensor(name, 1)[0].clone(),
        "empty": random_tensor(name, 0, 3),
        "row": random_tensor(name, 1),
    }
    file = open_torch_zip(saved(tmp_path, tree))
    for key, tensor in tree.items():
        assert same(file.state[key], tensor), key
        assert file.state[key].numpy().dtype == DTYPES[name].numpy


VIEWS = {
    "narrowed": lambda x: x[3:9],
    "columns": lambda x: x[:, 2:5],
    "every second row": lambda x: x[::2],
    "transposed": lambda x: x.t(),
    "permuted": lambda x: x.reshape(4, 5, 6).permute(2, 0, 1),
    "expanded": lambda x: x[:, :1].expand(20, 7),
    "expanded scalar": lambda x: x[2, 3].expand(3, 2),
    "diagonal": lambda x: x.diagonal(),
    "overlapping": lambda x: x.as_strided((5, 4), (1, 1), 7),
    "0-d": lambda x: x[19, 5],
    "empty": lambda x: x[20:],
    "one column": lambda x: x[:, 5:6].t(),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_a_view_of_a_larger_storage_reads_its_own_elements(view: str, dtype: Any, tmp_path: Path) -> None:
    whole = torch.arange(120).reshape(20, 6).to(dtype)
    tensor = VIEWS[view](whole)
    file = open_torch_zip(saved(tmp_path, {"v": tensor}))
    assert same(file.state["v"], tensor)
    assert [storage.nbytes for storage in file.storages.values()] == [whole.nbytes]


def test_tensors_that_share_a_storage_share_its_record(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    file = open_torch_zip(saved(tmp_path, {"a": whole[:6], "b": whole[4:], "c": whole, "d": torch.ones(1)}))
    views = {name: tensor.pieces[0].views[0] for name, tensor in file.tensors().items()}
    assert views["a"].storage is views["b"].storage is views["c"].storage is not views["d"].storage
    assert (views["a"].offset, views["b"].offset) == (0, 4)
    assert sorted(file.storages) == ["0", "1"]


def test_conjugated_and_negated_views_are_refused_or_resolved(tmp_path: Path) -> None:
    """torch stores ``x.conj()`` as the bytes of ``x`` and a mark beside them; ignoring the mark changes the values."""
    x = torch.tensor([1 + 2j, 3 - 4j])
    for name, tensor in (("conj", x.conj()), ("neg", x.conj().imag)):
        path = saved(tmp_path, {"t": tensor}, name)
        assert torch.equal(torch.load(path)["t"], tensor)
        try:
            lazy = open_torch_zip(path).state["t"]
        except UnsupportedError:
            continue
        assert torch.equal(lazy.torch(), tensor.resolve_conj().resolve_neg()), name


@pytest.mark.parametrize("kind", ["tensor", "parameter"])
def test_a_tensor_with_attributes_of_its_own_is_still_a_tensor(kind: str, tmp_path: Path) -> None:
    """DeepSpeed's flat groups and Megatron's parameters have some; torch pickles them with another call."""
    tensor = torch.arange(3.0) if kind == "tensor" else torch.nn.Parameter(torch.arange(3.0))
    tensor.partition_dim = 0
    found = open_torch_zip(saved(tmp_path, {"w": tensor})).tensors()
    assert list(found) == ["w"]
    assert same(found["w"], tensor)


def test_parameters_sizes_ordered_dicts_and_dtypes_become_plain(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tree = OrderedDict(weight=weight, size=weight.shape, kind=torch.bfloat16, args=argparse.Namespace(lr=1.0))
    state = open_torch_zip(saved(tmp_path, tree)).state
    assert type(state) is dict
    assert same(state["weight"], weight)
    assert state["size"] == (2, 3)
    assert str(state["kind"]) == "torch.bfloat16"
    assert state["args"].attributes == {"lr": 1.0}


def test_names_are_dotted_paths(tmp_path: Path) -> None:
    tree = {"a": {"b": torch.ones(1), 3: [torch.ones(2)]}, "args": argparse.Namespace(mask=torch.ones(3))}
    found = open_torch_zip(saved(tmp_path, tree)).tensors()
    assert {name: tensor.shape for name, tensor in found.items()} == {"a.b": (1,), "a.3.0": (2,), "args.mask": (3,)}


def test_two_tensors_of_one_dotted_path_are_refused(tmp_path: Path) -> None:
    file = open_torch_zip(saved(tmp_path, {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}))
    with pytest.raises(DamagedError, match=r"two tensors are named a\.b"):
        file.tensors()


# -- only metadata is read ---------------------------------------------------------------------------------------------


def sparse_file(path: Path, tree: Mapping[str, StoredTensor]) -> None:
    """A file as torch.save would write it, its storages being holes."""
    layout = plan_torch_file("archive", tree)
    with path.open("wb") as file:
        for offset, data in layout.frame(dict.fromkeys(range(len(layout.storages)), 1)):
            file.seek(offset)
            file.write(data)
        file.truncate(layout.nbytes)


def read_nbytes() -> int:
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


def test_a_file_of_1_tib_opens_and_maps_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.pt"
    sparse_file(
        path,
        {
            "big": StoredTensor(0, DTYPES["bfloat16"], (1 << 19, 1 << 20)),
            "last": StoredTensor(1, DTYPES["float32"], (5,)),
        },
    )
    assert path.stat().st_size > 1 << 40
    assert path.stat().st_blocks * 512 < 1 << 20
    before, resident = read_nbytes(), psutil.Process().memory_info().rss
    tensors = open_torch_zip(path).tensors()
    array = tensors["big"].numpy()
    assert array.shape == (1 << 19, 1 << 20)
    assert array[-1, -1] == 0
    assert tensors["last"].numpy().tolist() == [0.0] * 5
    assert read_nbytes() - before < 64 << 10
    assert psutil.Process().memory_info().rss - resident < 32 << 20


def test_a_whole_stored_tensor_is_a_map_of_the_file(tmp_path: Path) -> None:
    tensor = open_torch_zip(saved(tmp_path, {"w": torch.arange(64.0).reshape(8, 8)})).state["w"]
    array = tensor.numpy()
    base: Any = array
    while not isinstance(base, np.memmap) and base is not None:
        base = base.base
    assert isinstance(base, np.memmap)
    assert not array.flags.writeable
    storage = tensor.pieces[0].views[0].storage
    with storage.path.open("r+b") as file:
        file.seek(storage.offset)
        file.write(struct.pack("<f", -5.0))
    assert array[0, 0] == -5.0


def test_the_recorded_crc_is_the_crc_of_the_bytes(tmp_path: Path) -> None:
    file = open_torch_zip(saved(tmp_path, {"w": torch.arange(64.0), "v": torch.ones(3)}))
    assert not file.crc_disabled
    for storage in file.storages.values():
        assert storage.crc == zlib.crc32(file.path.read_bytes()[storage.offset : storage.offset + storage.nbytes])


def test_a_file_without_checksums_is_known_to_have_none(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, {"w": torch.arange(64.0), "empty": torch.ones(0)})
    finally:
        torch.serialization.set_crc32_options(before)
    file = open_torch_zip(path)
    assert file.crc_disabled
    assert [storage.crc for storage in file.storages.values()] == [None, None]


def test_a_single_storage_of_crc_zero_does_not_disable_the_others(tmp_path: Path) -> None:
    assert zlib.crc32(crc_zero()) == 0
    zero_crc = torch.frombuffer(bytearray(crc_zero()), dtype=torch.uint8)
    file = open_torch_zip(saved(tmp_path, {"z": zero_crc, "w": torch.ones(3)}))
    assert [storage.crc == 0 for storage in file.storages.values()] == [True, False]


def crc_zero() -> bytes:
    """Four bytes whose CRC-32 is 0."""
    return b"\x9d\x0a\xd9\x6d"


# -- what is refused, and with which class -----------------------------------------------------------------------------

FLOATS = torch.arange(12.0).reshape(3, 4)


def storage(key: Any = "0", numel: Any = 12, cls: Any = torch.FloatStorage, tag: Any = "storage") -> Ref:
    return Ref((tag, cls, key, "cpu", numel))


def view(ref: Any, offset: Any, size: Any, stride: Any) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, ref, offset, size, stride, False, OrderedDict())


def archive(path: Path, data_pkl: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", data_pkl)
        for name, data in (records if records is not None else {"data/0": bytes(48), "byteorder": b"little"}).items():
            file.writestr(f"a/{name}", data)
    return path


def test_a_zip_made_by_hand_opens(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", pickled({"w": view(storage(), 0, (3, 4), (4, 1))}))
    assert open_torch_zip(path).tensors()["w"].numpy().tolist() == [[0.0] * 4] * 3


def test_a_zip_of_before_byteorder_was_recorded_opens(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", pickled({"w": view(storage(), 0, (3, 4), (4, 1))}), {"data/0": bytes(48)})
    assert open_torch_zip(path).tensors()["w"].shape == (3, 4)


def test_a_file_that_is_not_there_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_torch_zip(tmp_path / "none.pt")


def test_a_file_of_torch_before_1_6_is_unsupported_and_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"w": FLOATS}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match="load and save it once"):
        open_torch_zip(tmp_path / "old.pt")


def test_a_compressed_zip_is_unsupported(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.zeros(100)})
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in file.namelist():
            packed.writestr(name, file.read(name))
    with pytest.raises(UnsupportedError, match="compressed"):
        open_torch_zip(tmp_path / "b.pt")


def directory_entry(data: bytes | bytearray, name: str) -> int:
    """Where the zip directory's entry of a record begins."""
    return data.rindex(name.encode()) - 46


@pytest.mark.parametrize("record", ["data/0", "data.pkl"])
def test_an_encrypted_record_is_unsupported(record: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": FLOATS})
    data = bytearray(path.read_bytes())
    data[directory_entry(data, f"a/{record}") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="encrypted"):
        open_torch_zip(path)


def test_a_file_cut_off_anywhere_is_damaged(tmp_path: Path) -> None:
    data = saved(tmp_path, {"w": FLOATS, "v": torch.ones(100)}).read_bytes()
    path = tmp_path / "cut.pt"
    for length in [*range(4, len(data), 13), *range(len(data) - 120, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            open_torch_zip(path)
    for length in range(4):
        path.write_bytes(data[:length])
        with pytest.raises(UnsupportedError):
            open_torch_zip(path)


@pytest.mark.parametrize("record", ["data/0", "data.pkl"])
def test_a_record_that_points_behind_the_end_is_damaged(record: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": FLOATS})
    data = bytearray(path.read_bytes())
    for place in (len(data) - 10, len(data) - 40, len(data) + 1000, 0xFFFFFFF0):
        struct.pack_into("<I", data, directory_entry(data, f"a/{record}") + 42, place)
        path.write_bytes(data)
        with pytest.raises(DamagedError):
            open_torch_zip(path)


def test_a_record_longer_than_the_file_is_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": FLOATS})
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, directory_entry(data, "a/data/0") + 20, 1 << 20, 1 << 20)
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="are not in a file of"):
        open_torch_zip(path)


def test_a_record_shorter_than_its_storage_is_damaged(tmp_path: Path) -> None:
    data = pickled({"w": view(storage(), 0, (3, 4), (4, 1))})
    with pytest.raises(DamagedError, match="has 47 bytes, its storage of 12 elements needs 48"):
        open_torch_zip(archive(tmp_path / "a.pt", data, {"data/0": bytes(47)}))


def test_a_missing_record_is_damaged(tmp_path: Path) -> None:
    data = pickled({"w": view(storage("7"), 0, (3, 4), (4, 1))})
    with pytest.raises(DamagedError, match="data/7 is missing"):
        open_torch_zip(archive(tmp_path / "a.pt", data))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (3, 4), (4, 1)),
        (12, (1,), (1,)),
        (12, (), ()),
        (0, (13,), (1,)),
        (0, (3, 4), (5, 1)),
        (0, (2, 2), (1 << 62, 1)),
        (1 << 70, (1,), (1,)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (11, (2,), (-1,)),
        (0, (3,), (4, 1)),
        (0, ("a",), (1,)),
        (0, 3, 1),
        (None, (3,), (1,)),
        (0, (1.0,), (1,)),
    ],
)
def test_a_view_that_leaves_its_storage_is_damaged(offset: Any, size: Any, stride: Any, tmp_path: Path) -> None:
    with pytest.raises(DamagedError):
        open_torch_zip(archive(tmp_path / "a.pt", pickled({"w": view(storage(), offset, size, stride)})))


@pytest.mark.parametrize(("offset", "size", "stride"), [(11, (1,), (99,)), (0, (12,), (1,)), (5, (0, 99), (1, 1))])
def test_a_view_up_to_the_end_of_its_storage_opens(offset: int, size: Any, stride: Any, tmp_path: Path) -> None:
    file = open_torch_zip(archive(tmp_path / "a.pt", pickled({"w": view(storage(), offset, size, stride)})))
    assert file.state["w"].numpy().shape == size


@pytest.mark.parametrize(
    ("ref", "error"),
    [
        (storage(tag="module"), UnsafeError),
        (storage(cls="FloatStorage"), UnsafeError),
        (storage(numel="12"), UnsafeError),
        (storage(numel=-1), DamagedError),
        (storage(numel=1 << 80), DamagedError),
        (storage(cls=torch.nn.Linear), UnsupportedError),
        (storage(cls=torch.QInt8Storage), UnsupportedError),
        (storage(key="../byteorder"), DamagedError),
        (storage(key=[]), DamagedError),
        (Ref(("storage",)), DamagedError),
        (Ref("storage"), DamagedError),
        (7, UnsafeError),
    ],
)
def test_a_storage_that_makes_no_sense_is_refused(ref: Any, error: type[StreamconvError], tmp_path: Path) -> None:
    with pytest.raises(error):
        open_torch_zip(archive(tmp_path / "a.pt", pickled({"w": view(ref, 0, (1,), (1,))})))


def test_two_pickles_are_unsupported(tmp_path: Path) -> None:
    data = pickled({})
    path = archive(tmp_path / "a.pt", data)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("b/data.pkl", data)
    with pytest.raises(UnsupportedError, match="2 records"):
        open_torch_zip(path)


def test_a_zip_of_something_else_is_unsupported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(UnsupportedError, match="0 records"):
        open_torch_zip(tmp_path / "a.pt")


def test_a_record_that_is_there_twice_is_damaged(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", pickled({}))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("a/data/0", b"again")
    with pytest.raises(DamagedError, match="twice"):
        open_torch_zip(path)


def test_a_big_endian_file_is_unsupported(tmp_path: Path) -> None:
    data = pickled({"w": view(storage(), 0, (3, 4), (4, 1))})
    with pytest.raises(UnsupportedError, match="big-endian"):
        open_torch_zip(archive(tmp_path / "a.pt", data, {"data/0": bytes(48), "byteorder": b"big"}))


def test_a_flipped_byte_of_the_pickle_is_damaged(tmp_path: Path) -> None:
    """The zip records the pickle's CRC-32 too: a stride or a learning rate that changed must not be believed."""
    path = saved(tmp_path, {"w": FLOATS, "lr": 0.5})
    data = bytearray(path.read_bytes())
    place = data.index(b"G?\xe0\x00\x00\x00\x00\x00\x00")
    data[place + 2] = 0xE8
    path.write_bytes(data)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() == "a/data.pkl"
    with pytest.raises(DamagedError):
        open_torch_zip(path)


# -- nothing else is ever raised ---------------------------------------------------------------------------------------


def opened(path: Path) -> None:
    """Open and list a file; our own errors are fine, any other is a failure of the test."""
    try:
        open_torch_zip(path).tensors()
    except StreamconvError:
        return


@pytest.mark.slow
def test_a_changed_byte_anywhere_never_raises_anything_else(tmp_path: Path) -> None:
    data = saved(tmp_path, {"w": torch.arange(3.0), "n": [1, "x"]}).read_bytes()
    path = tmp_path / "changed.pt"
    rng = random.Random(5)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] = rng.choice((0, 1, 0xFF, 0x80, changed[place] ^ 1 << rng.randrange(8), rng.randrange(256)))
        path.write_bytes(changed)
        opened(path)


def test_changed_bytes_of_the_zip_directory_never_raise_anything_else(tmp_path: Path) -> None:
    data = saved(tmp_path, {"w": torch.arange(3.0)}).read_bytes()
    path = tmp_path / "changed.pt"
    start = data.index(b"PK\x01\x02")
    rng = random.Random(6)
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 2, 4))):
            changed[rng.randrange(start, len(data))] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        path.write_bytes(changed)
        opened(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ((6, 2), 0xFFFF),
        ((8, 2), 0x0800),
        ((42, 4), 0xFFFFFFFF),
        ((28, 2), 0xFFFF),
        ((30, 2), 0xFFFF),
        ((20, 4), 0xFFFFFFFF),
    ],
    ids=["version needed", "flags", "offset", "name length", "extra length", "size"],
)
def test_a_directory_entry_that_makes_no_sense_is_refused(field: tuple[int, int], value: int, tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": FLOATS})
    data = bytearray(path.read_bytes())
    entry = directory_entry(data, "a/data/0")
    width = field[1]
    data[entry + field[0] : entry + field[0] + width] = value.to_bytes(width, "little")
    if field == (8, 2):
        data[entry + 46] = 0xFF
    path.write_bytes(data)
    with pytest.raises(StreamconvError):
        open_torch_zip(path)


@pytest.mark.parametrize("place", [1 << 62, (1 << 63) - 100, 1 << 63, (1 << 64) - 1])
def test_a_zip64_offset_out_of_any_range_is_damaged(place: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    sparse_file(path, {"a": StoredTensor(0, DTYPES["uint8"], (1 << 32,)), "b": StoredTensor(1, DTYPES["uint8"], (1,))})
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 4096)
        tail = bytearray(file.read())
        entry = directory_entry(tail, "archive/data/1")
        struct.pack_into("<Q", tail, entry + 46 + len("archive/data/1") + 4, place)
        file.seek(size - 4096)
        file.write(tail)
    with pytest.raises(DamagedError):
        open_torch_zip(path)


DEEP = b")" + b"\x85" * 200_000
DOUBLED = b")" + b"2\x86" * 60
UNSAFE = {
    "a deep tuple as a storage's key": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n%sX\x03\x00\x00\x00cpuK\x01tQ.",
    "a deep tuple as a storage's tag": b"(%sctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
    "a deep tuple as a persistent id of five": b"(%sNNNNtQ.",
    "a deep tuple as a key of an OrderedDict": b"ccollections\nOrderedDict\n]](%sK\x01ea\x85R.",
    "a deep tuple as a tensor's size": (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x01tQK\x00%sK\x01\x85\x89NtR."
    ),
    "a deep tuple as a dtype": (
        b"ctorch._utils\n_rebuild_tensor_v3\n((X\x07\x00\x00\x00storagectorch\nUntypedStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89N%stR."
    ),
    "a huge int as the name of a tensor": (
        b"}\x8b\x10\x27\x00\x00" + b"\x7f" * 10_000 + b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89NtRs."
    ),
}


OPENER = """
import sys
from pathlib import Path
from streamconv.core.errors import StreamconvError
from streamconv.containers.torch_save.zip_reader import open_torch_zip
for name in sys.argv[1:]:
    try:
        len(str(open_torch_zip(Path(name)).tensors()))
    except StreamconvError as error:
        len(str(error))
    print("survived")
"""


@pytest.mark.parametrize("bomb", UNSAFE)
def test_a_bomb_in_a_tensors_description_is_refused(bomb: str, tmp_path: Path) -> None:
    """In a process of its own: what overflows the stack or doubles 60 times would take the tests with it."""
    paths = []
    for name, tree in (("deep", DEEP), ("doubled", DOUBLED)):
        data = b"\x80\x02" + UNSAFE[bomb].replace(b"%s", tree)
        paths.append(str(archive(tmp_path / name, data)))
    command = [sys.executable, "-c", OPENER, *paths]
    run = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["survived"] * 2, (run.returncode, run.stderr[-300:])


def test_a_folder_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a file"):
        open_torch_zip(tmp_path)


def test_a_file_changed_behind_an_open_reader_is_seen_by_its_size(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.ones(100_000)})
    tensor = open_torch_zip(path).state["w"]
    os.truncate(path, 4096)
    with pytest.raises(StreamconvError):
        tensor.numpy()


class Twice(torch.Tensor):  # type: ignore[misc]
    """A tensor of a class of its own that holds another one, as a DTensor does."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Twice:
        made: Twice = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


def test_a_tensor_of_a_class_of_its_own_is_refused_by_that_name(tmp_path: Path) -> None:
    """It is no damage: the file is whole, and what it holds is not read here."""
    torch.save({"w": Twice(torch.ones(3))}, tmp_path / "t.pt")
    with pytest.raises(UnsupportedError, match=r"a tensor of the class '.*Twice', which is made by 'torch\._utils\."):
        open_torch_zip(tmp_path / "t.pt")
