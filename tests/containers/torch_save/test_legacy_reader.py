"""Files of torch before 1.6: equal to torch.load, only metadata read; and what a file that is neither looks like."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import random
import sys
import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamconv.containers.pickles.machine import Global
from streamconv.containers.torch_save.legacy_reader import open_torch_old
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, SourceError, StreamconvError, UnsafeError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from tests.containers.torch_save.by_hand import Call, Ref, pickled
from tests.containers.torch_save.test_zip_reader import random_tensor, read_nbytes, same

MAGIC = 0x1950A86A20F9469CFC6C
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def saved(tmp_path: Path, tree: Any, protocol: int = 2) -> Path:
    path = tmp_path / "old.pt"
    torch.save(tree, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    return path


def ref(key: Any = "7", numel: Any = 12, view: Any = None, cls: Any = torch.FloatStorage) -> Ref:
    return Ref(("storage", cls, key, "cpu", numel, view))


def tensor(storage: Any, offset: Any = 0, size: Any = (3, 4), stride: Any = (4, 1)) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def by_hand(
    path: Path,
    tree: Any,
    *,
    keys: Any = ("7",),
    data: bytes = (12).to_bytes(8, "little") + np.arange(12, dtype=np.float32).tobytes(),
    head: tuple[Any, ...] = (MAGIC, 1001, MACHINE),
) -> Path:
    path.write_bytes(pickled(*head, tree, list(keys) if isinstance(keys, tuple) else keys) + data)
    return path


# -- equal to torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_each_dtype_reads_bit_for_bit(name: str, tmp_path: Path) -> None:
    tree = {"matrix": random_tensor(name, 6, 5), "scalar": random_tensor(name, 1)[0].clone()}
    tree["empty"] = random_tensor(name, 0, 3)
    file = open_torch(saved(tmp_path, tree))
    assert file.kind == "torch before 1.6"
    # torch saves its newest types so, and then cannot load them.
    loaded = torch.load(file.path, weights_only=True) if DTYPES[name].storage else tree
    assert list(file.state) == list(loaded)
    assert all(same(file.state[key], value) for key, value in loaded.items())


@pytest.mark.parametrize("protocol", range(1, 5))
def test_each_pickle_protocol_opens(protocol: int, tmp_path: Path) -> None:
    whole = torch.arange(120.0).reshape(20, 6)
    tree = {"a": whole[3:9, 2:5], "b": {"t": whole.t()}, 3: [torch.ones(2, dtype=torch.bfloat16)], "lr": 0.5}
    found = open_torch(saved(tmp_path, tree, protocol)).tensors()
    assert list(found) == ["a", "b.t", "3.0"]
    assert same(found["a"], whole[3:9, 2:5])
    assert same(found["b.t"], whole.t())
    assert found["a"].pieces[0].views[0].storage is found["b.t"].pieces[0].views[0].storage


def test_objects_are_inert_and_globals_are_counted(tmp_path: Path) -> None:
    tree = {"args": argparse.Namespace(lr=1.0), "w": torch.ones(2), "v": torch.nn.Parameter(torch.ones(3))}
    file = open_torch(saved(tmp_path, tree))
    assert file.state["args"].attributes == {"lr": 1.0}
    assert file.globals[Global("argparse", "Namespace")] == 1
    assert file.globals[Global("torch._utils", "_rebuild_tensor_v2")] == 2
    assert file.globals[Global("torch", "FloatStorage")] == 0


def test_a_model_saved_whole_names_its_classes(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    file = open_torch(saved(tmp_path, model))
    assert file.state.cls == Global("torch.nn.modules.linear", "Linear")
    assert sorted(tuple(t.shape) for t in file.tensors().values()) == [(2,), (2, 3)]


def test_records_are_the_storages_without_checksums(tmp_path: Path) -> None:
    file = open_torch(saved(tmp_path, {"a": torch.ones(3), "b": torch.ones(0), "c": torch.ones(5)}))
    assert sorted(record.nbytes for record in file.records()) == [12, 20]
    assert {record.crc for record in file.records()} == {None}
    assert not file.crc_disabled
    assert file.notes == ()


def test_a_second_object_behind_the_first_is_noted(tmp_path: Path) -> None:
    """torch.save twice into one open file makes such a file; torch.load reads the first."""
    path = saved(tmp_path, {"a": torch.ones(3)})
    first = path.read_bytes()
    path.write_bytes(first + first)
    file = open_torch(path)
    assert torch.equal(file.state["a"].torch(), torch.ones(3))
    assert file.notes == (f"{len(first)} bytes behind the last tensor are not read",)


def test_a_view_of_a_storage_as_releases_before_0_4_wrote_it(tmp_path: Path) -> None:
    tree = {"all": tensor(ref()), "part": tensor(ref(view=("8", 4, 6)), 1, (5,), (1,))}
    path = by_hand(tmp_path / "a.pt", tree)
    file = open_torch(path)
    loaded = torch.load(path, weights_only=False)
    assert loaded["part"].tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert all(same(file.state[key], value) for key, value in loaded.items())


def test_a_huge_file_opens_without_being_read(tmp_path: Path) -> None:
    numel = 1 << 36
    tree = {"big": tensor(ref(numel=numel), 0, (numel,), (1,))}
    path = by_hand(tmp_path / "a.pt", tree, data=numel.to_bytes(8, "little"))
    os.truncate(path, path.stat().st_size + 4 * numel)
    before = read_nbytes()
    assert open_torch(path).state["big"].numpy()[-1] == 0
    assert read_nbytes() - before < 512 << 10


@pytest.mark.parametrize("count", [500, 20000, 80000])
def test_a_pickle_of_any_length_is_read_to_its_end(count: int, tmp_path: Path) -> None:
    words = [f"a word of thirty-two bytes {number:05d}" for number in range(count)]
    path = saved(tmp_path, {"words": words, "w": torch.arange(4.0)})
    state = open_torch(path).state
    assert state["words"] == words
    assert torch.equal(state["w"].torch(), torch.arange(4.0))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedError, match=f"pickle ends at byte {len(data) // 2}, "):
        open_torch(path)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_file_cut_off_anywhere_is_damaged(tmp_path: Path) -> None:
    data = saved(tmp_path, {"w": torch.arange(4.0), "v": torch.ones(3)}).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(4, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            open_torch(path)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keys": ("8",)}, DamagedError),
        ({"keys": ("7", "7")}, DamagedError),
        ({"keys": ()}, DamagedError),
        ({"keys": {"7": 1}}, DamagedError),
        ({"data": (11).to_bytes(8, "little") + bytes(48)}, DamagedError),
        ({"data": (13).to_bytes(8, "little") + bytes(52)}, DamagedError),
        ({"data": (-1).to_bytes(8, "little", signed=True) + bytes(48)}, DamagedError),
        ({"data": (12).to_bytes(8, "little") + bytes(47)}, DamagedError),
        ({"head": (MAGIC, 1002, MACHINE)}, UnsupportedError),
        ({"head": (MAGIC, 1001, MACHINE | {"little_endian": False})}, UnsupportedError),
        ({"head": (MAGIC, 1001, {})}, DamagedError),
        ({"head": (MAGIC, 1001, 5)}, DamagedError),
    ],
)
def test_a_frame_that_makes_no_sense_is_refused(options: Any, error: type[StreamconvError], tmp_path: Path) -> None:
    with pytest.raises(error):
        open_torch(by_hand(tmp_path / "a.pt", {"w": tensor(ref())}, **options))


@pytest.mark.parametrize(
    ("tree", "error"),
    [
        (tensor(ref(), 1), DamagedError),
        (tensor(ref(), 0, (-3, 4)), DamagedError),
        (tensor(ref(numel=-1)), DamagedError),
        ([tensor(ref()), tensor(ref(numel=13))], DamagedError),
        (tensor(ref(view=("8", 8, 6))), DamagedError),
        (tensor(ref(view=("8", -1, 6))), DamagedError),
        (tensor(ref(view=(8, 0, 6))), DamagedError),
        (tensor(ref(view=5)), DamagedError),
        (tensor(ref(cls=torch.nn.Linear)), UnsupportedError),
        (tensor(Ref(("storage", "FloatStorage", "7", "cpu", 12, None))), UnsafeError),
        ([tensor(ref()), Ref(("module", "name"))], UnsafeError),
        ([tensor(ref()), Ref(("other", 1, 2, 3, 4))], UnsafeError),
    ],
)
def test_a_storage_that_makes_no_sense_is_refused(tree: Any, error: type[StreamconvError], tmp_path: Path) -> None:
    with pytest.raises(error):
        open_torch(by_hand(tmp_path / "a.pt", tree))


def test_a_pickle_that_would_run_a_command_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    tree = {"w": tensor(ref()), "x": Call(os.system, f"touch {mark}")}
    file = open_torch(by_hand(tmp_path / "a.pt", tree))
    assert not mark.exists()
    assert file.globals[Global(os.system.__module__, "system")] == 1
    assert file.state["x"].args == (f"touch {mark}",)


def test_changed_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    data = saved(tmp_path, {"w": torch.arange(3.0), "n": [1, "x"]}).read_bytes()
    path = tmp_path / "changed.pt"
    rng = random.Random(7)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] = rng.choice((0, 1, 0xFF, 0x80, changed[place] ^ 1 << rng.randrange(8), rng.randrange(256)))
        path.write_bytes(changed)
        try:
            open_torch(path).tensors()
        except StreamconvError:
            continue


# -- what is neither ---------------------------------------------------------------------------------------------------


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


OTHERS = {
    "an empty file": b"",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "gzip": gzip.compress(b"hello"),
    "a bare pickle": pickle.dumps({"a": 1}),
    "pickle": pickle.dumps({"a": 1}, 0),
    "torch before 0.1.10": tar(),
    "HTML": b"\n<!DOCTYPE html><html>",
    "JSON": b'{"a": 1}',
    "text": b"hello",
    "safetensors": (2).to_bytes(8, "little") + b"{}",
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "zeros": bytes(600),
    "nothing that is known": b"\x7fELF\x02\x01",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "GGUF": b"GGUF\x03",
}


@pytest.mark.parametrize("words", OTHERS)
def test_a_file_of_another_kind_is_refused_by_its_name(words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(OTHERS[words])
    with pytest.raises(UnsupportedError, match=words):
        open_torch(path)


def test_a_git_lfs_pointer_comes_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(OTHERS["git-lfs"])
    with pytest.raises(UnsupportedError) as refusal:
        open_torch(tmp_path / "a.pt")
    assert "git lfs pull" in str(refusal.value.remedy)


def test_the_zip_format_opens_by_the_same_call(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    file = open_torch(tmp_path / "a.pt")
    assert file.kind == "torch zip"
    assert isinstance(file.state["w"], LazyTensor)
    names = {record.name for record in file.records()}
    assert {"data.pkl", "data/0", "byteorder", "version"} <= names
    data = file.path.read_bytes()
    assert all(r.crc == zlib.crc32(data[r.offset : r.offset + r.nbytes]) for r in file.records())


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(SourceError):
            open_torch(path)
        with pytest.raises(SourceError):
            open_torch_old(path)
    (tmp_path / "a.pt").write_bytes(b"hello")
    with pytest.raises(UnsupportedError):
        open_torch_old(tmp_path / "a.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_no_file_is_left_open(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(3)})
    before = len(list(Path("/proc/self/fd").iterdir()))
    file = open_torch(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert file.path == path
