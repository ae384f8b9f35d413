"""Our file is the file that ``torch.save`` writes, byte for byte, and opens wherever a torch file opens."""

from __future__ import annotations

import argparse
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.writer import StoredTensor
from streamconv.containers.torch_save.zip_reader import open_torch_zip
from streamconv.containers.torch_save.zip_writer import TorchLayout, plan_torch_file
from streamconv.core.dtypes import DTYPES


class Ours:
    """A torch tree as the tree that we lay out, its containers and strings being the same objects where they were."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        self.data: list[bytes] = []

    def of(self, tree: Any) -> Any:
        if id(tree) not in self.done:
            self.done[id(tree)] = self._made(tree)
        return self.done[id(tree)]

    def _made(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            self.data.append(tree.reshape(-1).view(torch.uint8).numpy().tobytes())
            name = str(tree.dtype).removeprefix("torch.")
            return StoredTensor(len(self.data) - 1, DTYPES[name], tuple(tree.shape))
        if isinstance(tree, torch.dtype):
            return Global("torch", str(tree).removeprefix("torch."))
        if isinstance(tree, dict):
            return type(tree)((key, self.of(value)) for key, value in tree.items())
        if isinstance(tree, argparse.Namespace):
            return argparse.Namespace(**self.of(vars(tree)))
        if isinstance(tree, list):
            return [self.of(item) for item in tree]
        return tuple(self.of(item) for item in tree) if isinstance(tree, tuple) else tree


def write(path: Path, layout: TorchLayout, data: Iterable[bytes] | None = None) -> None:
    """Write a laid out file; without data its storages are holes of checksum 0."""
    filled = list(data) if data is not None else None
    crcs = {key: zlib.crc32(filled[key]) if filled is not None else 0 for key in range(len(layout.storages))}
    with path.open("wb") as file:
        for (offset, nbytes), content in zip(layout.storages, filled or (), strict=filled is not None):
            assert len(content) == nbytes
            file.seek(offset)
            file.write(content)
        for offset, content in layout.frame(crcs):
            file.seek(offset)
            file.write(content)
        assert file.seek(0, 2) == layout.nbytes


def without_id(data: bytes, archive: str) -> bytes:
    """A file with the 40 digits of its serialization id, and their checksum in both places, set to zero."""
    changed = bytearray(data)
    name = f"{archive}/.data/serialization_id".encode()
    entry = data.rindex(name) - 46
    header = data.index(name) - 30
    lengths = struct.unpack_from("<HH", data, header + 26)
    start = header + 30 + sum(lengths)
    assert data[start : start + 40].isdigit()
    changed[start : start + 40] = bytes(40)
    changed[start + 44 : start + 48] = bytes(4)
    changed[entry + 16 : entry + 20] = bytes(4)
    return bytes(changed)


def many() -> dict[str, Any]:
    """One of everything that a state dict and its arguments hold."""
    tied = torch.arange(24.0).reshape(4, 6)
    table = {"shared": 1}
    args = argparse.Namespace(
        lr=1e-4, betas=(0.9, 0.95), params_dtype=torch.bfloat16, hidden=4096, split="949,50,1", none=None, flag=True,
        seed=-1, big=1 << 40, layers=[1, 2, 3], nothing=[], also=torch.bfloat16, unicode="Größe 😀", table=table,
    )  # fmt: skip
    return {
        "iteration": 3,
        "checkpoint_version": 3.0,
        "args": args,
        "model": OrderedDict(
            embedding=OrderedDict(weight=tied),
            empty=OrderedDict(),
            encoder=OrderedDict(
                (f"layers.{n}.{kind}", torch.full((n, 3), n, dtype=dtype))
                for n in range(130)
                for kind, dtype in (("weight", torch.bfloat16), ("bias", torch.float16))
            ),
            head=OrderedDict(weight=tied),
        ),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 5, dtype=torch.float64),
        "bits": torch.tensor([True, False, True]),
        "more": [torch.arange(5, dtype=getattr(torch, name)) for name in ("int8", "uint8", "int16", "int32")],
        "complex": [torch.tensor([1 + 2j]), torch.tensor([1 + 2j], dtype=torch.complex128)],
        "long": list(range(1500)),
        "wide": {f"key {n}": n * 1.5 for n in range(1001)},
        "ordered": OrderedDict.fromkeys(range(1001)),
        "ints": [0, 1, -1, 255, 256, 65535, 65536, 1 << 31, -(1 << 31), -(1 << 31) - 1, 1 << 63, -(1 << 40), -3 << 70],
        "floats": [0.0, -0.0, 1e300, float("inf"), float("nan")],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "again": table,
    }


TREES: dict[str, Any] = {
    "everything": many,
    "nothing": dict,
    "a single tensor": lambda: torch.arange(3.0),
    "an empty tensor": lambda: {"w": torch.empty(0)},
    "a scalar": lambda: {"w": torch.tensor(1.5)},
    "a list of tensors": lambda: [torch.ones(n, dtype=torch.bfloat16) for n in range(70)],
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("archive", ["model_optim_rng", "a", "a-much-longer-name-of-an-archive-than-usual", "a.b"])
def test_the_file_is_torchs_own_but_for_its_id(name: str, archive: str, tmp_path: Path) -> None:
    tree = TREES[name]()
    (tmp_path / "theirs").mkdir()
    torch.save(tree, tmp_path / "theirs" / f"{archive}.pt")
    ours = Ours()
    layout = plan_torch_file(archive, ours.of(tree))
    write(tmp_path / "ours.pt", layout, ours.data)
    theirs = (tmp_path / "theirs" / f"{archive}.pt").read_bytes()
    assert without_id((tmp_path / "ours.pt").read_bytes(), archive) == without_id(theirs, archive)


def leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield list(tree)
        tree = list(tree.values())
    if isinstance(tree, argparse.Namespace):
        tree = list(vars(tree).items())
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, torch.Tensor):
        yield (tree.dtype, tree.shape, tree.reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        yield repr(tree)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_the_file_as_a_careful_user_asks_it_to(mmap: bool, tmp_path: Path) -> None:
    tree = many()
    ours = Ours()
    write(tmp_path / "ours.pt", plan_torch_file("x", ours.of(tree)), ours.data)
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=mmap)
    assert list(leaves(loaded)) == list(leaves(tree))
    weight = loaded["model"]["embedding"]["weight"]
    assert loaded["model"]["head"]["weight"] is weight
    # Every parameter starts at a multiple of 64 bytes of the file.
    assert not mmap or weight.data_ptr() % 64 == 0


def test_zipfile_finds_no_fault_in_any_record(tmp_path: Path) -> None:
    ours = Ours()
    write(tmp_path / "ours.pt", plan_torch_file("x", ours.of(many())), ours.data)
    with zipfile.ZipFile(tmp_path / "ours.pt") as file:
        assert file.testzip() is None
        assert file.read("x/data/0") == ours.data[0]


def test_our_own_reader_finds_the_storages_where_they_were_laid(tmp_path: Path) -> None:
    ours = Ours()
    layout = plan_torch_file("x", ours.of(many()))
    write(tmp_path / "ours.pt", layout, ours.data)
    storages = open_torch_zip(tmp_path / "ours.pt").storages
    found = [(storages[str(key)].offset, storages[str(key)].nbytes) for key in range(len(storages))]
    assert found == list(layout.storages)
    assert [storages[str(key)].crc for key in range(len(storages))] == list(map(zlib.crc32, ours.data))


def test_the_id_has_40_digits_and_follows_the_content(tmp_path: Path) -> None:
    ids = []
    for number, value in enumerate((1.0, 1.0, 2.0)):
        ours = Ours()
        write(tmp_path / f"{number}", plan_torch_file("x", ours.of({"w": torch.full((3,), value)})), ours.data)
        with zipfile.ZipFile(tmp_path / f"{number}") as file:
            ids.append(file.read("x/.data/serialization_id"))
    assert all(len(digits) == 40 and digits.isdigit() for digits in ids)
    assert ids[0] == ids[1] != ids[2]


# -- more than 32 bits -------------------------------------------------------------------------------------------------


def skeleton(path: Path, *sizes: tuple[int, Any]) -> None:
    """The file that torch would save for tensors of these sizes, their bytes being a hole."""
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({f"w{n}": torch.empty(size, dtype=dtype) for n, (size, dtype) in enumerate(sizes)}, path)


def frames(path: Path, layout: TorchLayout) -> Iterator[tuple[int, bytes, bytes]]:
    """(offset, ours, theirs) of everything but storages; the id's digits and their checksum are zeros in both."""
    with path.open("rb") as file:
        for offset, data in layout.frame(dict.fromkeys(range(len(layout.storages)), 0)):
            file.seek(offset)
            yield offset, data, file.read(len(data))


@pytest.mark.parametrize("size", [(1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 32) + 70, 3 << 40])
def test_a_tensor_of_more_than_4_gib_has_torchs_skeleton(size: int, tmp_path: Path) -> None:
    """Sizes, offsets and zip64 fields are torch's own, of the large record and of all that stand behind it."""
    skeleton(tmp_path / "x.pt", (size, torch.uint8))
    layout = plan_torch_file("x", {"w0": StoredTensor(0, DTYPES["uint8"], (size,))})
    assert layout.nbytes == (tmp_path / "x.pt").stat().st_size
    pairs = list(frames(tmp_path / "x.pt", layout))
    digits = next(ours[-40:] for _, ours, _ in pairs if ours[-40:].isdigit())
    their_digits = next(theirs[-40:] for _, _, theirs in pairs if theirs[-40:].isdigit())
    for offset, ours, theirs in pairs:
        for one, other in ((digits, their_digits), (crc(digits), crc(their_digits))):
            ours = ours.replace(one, bytes(len(one)))
            theirs = theirs.replace(other, bytes(len(other)))
        assert ours == theirs, offset


def crc(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))


@pytest.mark.parametrize("first", [(1 << 32) - 700, (1 << 32) - 640, (1 << 32) - 1, 1 << 32, 5 << 30])
def test_torch_finds_every_storage_behind_4_gib_where_it_was_laid(first: int, tmp_path: Path) -> None:
    shapes = [(first,), (3, 5), (0,), (), (1 << 33,), (7,)]
    tree = {f"w{n}": StoredTensor(n, DTYPES["uint8"], shape) for n, shape in enumerate(shapes)}
    layout = plan_torch_file("x", tree)
    write(tmp_path / "x.pt", layout)
    with FakeTensorMode():
        loaded = torch.load(tmp_path / "x.pt")
    found = [loaded[f"w{n}"].untyped_storage() for n in range(len(shapes))]
    assert [(storage._checkpoint_offset, storage.nbytes()) for storage in found] == list(layout.storages)
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        assert [file.getinfo(f"x/data/{n}").file_size for n in range(len(shapes))] == [n for _, n in layout.storages]
    opened = open_torch_zip(tmp_path / "x.pt").storages
    assert [(opened[str(n)].offset, opened[str(n)].nbytes) for n in range(len(shapes))] == list(layout.storages)


def test_values_behind_4_gib_are_read_back_by_torch(tmp_path: Path) -> None:
    tree = {"big": StoredTensor(0, DTYPES["uint8"], (1 << 32,)), "last": StoredTensor(1, DTYPES["float32"], (3,))}
    layout = plan_torch_file("x", tree)
    write(tmp_path / "x.pt", layout)
    with (tmp_path / "x.pt").open("r+b") as file:
        file.seek(layout.storages[1][0])
        file.write(struct.pack("<3f", 1.5, -2.0, 0.25))
    loaded = torch.load(tmp_path / "x.pt", mmap=True)
    assert loaded["last"].tolist() == [1.5, -2.0, 0.25]
    assert loaded["big"].shape == (1 << 32,)


@pytest.mark.slow
def test_more_than_65535_records_are_all_listed(tmp_path: Path) -> None:
    """The end record's 16 bits say 65535; readers must take the number from the zip64 record."""
    count = 66_000
    layout = plan_torch_file("x", [StoredTensor(n, DTYPES["uint8"], (1,)) for n in range(count)])
    data = [bytes((n % 251,)) for n in range(count)]
    write(tmp_path / "x.pt", layout, data)
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        assert len(file.namelist()) == count + 6
        for n in (0, 65_534, 65_535, 65_536, count - 1):
            assert file.read(f"x/data/{n}") == data[n]
    reader = torch._C.PyTorchFileReader(str(tmp_path / "x.pt"))
    assert reader.get_record_offset(f"data/{count - 1}") == layout.storages[-1][0]
    assert reader.get_record(f"data/{count - 1}") == data[-1]


def test_keys_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="count up from 0"):
        plan_torch_file("x", [StoredTensor(1, DTYPES["uint8"], (1,)), StoredTensor(0, DTYPES["uint8"], (1,))])
