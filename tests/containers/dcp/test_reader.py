"""torch.distributed.checkpoint: equal to dcp.load, put together from chunks, hard to fool and to break."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import random
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem, metadata

import streamconv.containers.dcp.reader as ours
from streamconv.containers.dcp.metadata_reader import read_metadata
from streamconv.containers.dcp.reader import open_distcp, open_distributed
from streamconv.containers.pickles.machine import Global
from streamconv.containers.stored_file import StoredFile
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, SourceError, StreamconvError, UnsafeError, UnsupportedError
from streamconv.core.lazy import LazyTensor, Storage
from tests.containers.torch_save.test_zip_reader import random_tensor, read_nbytes, same
from tests.places import FRAMEWORKS

dcp: Any = pytest.importorskip("torch.distributed.checkpoint")
REAL = FRAMEWORKS / "mcore_llama_dist_tp2pp2"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")


def saved(folder: Path, tree: Mapping[str, Any]) -> Path:
    dcp.save(dict(tree), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return folder


def loaded(folder: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The whole tensors as torch reads them."""
    tree = {name: torch.zeros(tuple(t.shape), dtype=getattr(torch, str(t.dtype))) for name, t in shapes.items()}
    dcp.load(tree, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return tree


Box = tuple[tuple[int, ...], tuple[int, ...]]
Edit = Callable[[Any], None]


def sharded(folder: Path, tree: Mapping[str, tuple[Any, list[Box]]], edit: Edit | None = None, files: int = 2) -> Path:
    """What several ranks would have written: each tensor cut into boxes (start, shape), which go to files in turn."""
    folder.mkdir()
    described: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    data = [io.BytesIO() for _ in range(files)]
    turn = 0
    for name, (tensor, boxes) in tree.items():
        chunks = []
        for start, shape in boxes:
            cut = tensor[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))].clone()
            part, buffer = data[turn % files], io.BytesIO()
            torch.save(cut, buffer)
            index = metadata.MetadataIndex(name, start)
            places[index] = filesystem._StorageInfo(f"__{turn % files}_0.distcp", part.tell(), buffer.tell())
            part.write(buffer.getvalue())
            chunks.append(metadata.ChunkStorageMetadata(torch.Size(start), torch.Size(shape)))
            turn += 1
        properties = metadata.TensorProperties.create_from_tensor(tensor)
        described[name] = metadata.TensorStorageMetadata(properties, tensor.size(), chunks)
    whole = metadata.Metadata(described, None, places)
    if edit:
        edit(whole)
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    for number, part in enumerate(data):
        (folder / f"__{number}_0.distcp").write_bytes(part.getvalue())
    return folder


WHOLE = torch.arange(48.0).reshape(4, 6, 2)
BOXES: list[Box] = [((2, 0, 0), (2, 3, 2)), ((0, 0, 0), (2, 6, 2)), ((2, 3, 0), (1, 3, 2)), ((3, 3, 0), (1, 3, 2))]
TREE: dict[str, tuple[Any, list[Box]]] = {
    "a.w": (WHOLE, BOXES),
    "b": (torch.tensor(7), [((), ())]),
    "c": (torch.arange(5), [((0,), (5,))]),
}


def nested(depth: int) -> list[Box]:
    """A square in boxes that no straight cut parts: four around the middle, and again in the middle."""
    boxes: list[Box] = []
    for ring in range(depth):
        a, n = ring, 2 * (depth - ring)
        boxes += [
            ((a, a), (1, n)),
            ((a, a + n), (n, 1)),
            ((a + n, a + 1), (1, n)),
            ((a + 1, a), (n, 1)),
        ]
    return [*boxes, ((depth, depth), (1, 1))]


# -- equal to torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_each_dtype_reads_bit_for_bit(name: str, tmp_path: Path) -> None:
    tree = {"matrix": random_tensor(name, 6, 5), "scalar": random_tensor(name, 1)[0].clone()}
    tree["empty"] = random_tensor(name, 0, 3)
    found = open_distributed(saved(tmp_path / "d", tree)).tensors
    assert found.keys() == tree.keys()
    assert all(same(found[key], value) for key, value in tree.items())
    (file,) = tmp_path.glob("d/*.distcp")
    assert all(same(open_distcp(file).state[key], value) for key, value in tree.items())


def test_nested_state_and_objects(tmp_path: Path) -> None:
    tree = {"model": {"w": torch.ones(3), "n": 5}, "opt": {"lr": 0.5, "betas": (0.9, 0.95)}}
    found = open_distributed(saved(tmp_path / "d", tree))
    assert list(found.tensors) == ["model.w"]
    assert {name: found.value(name) for name in found.objects} == {
        "model.n": 5,
        "opt.lr": 0.5,
        "opt.betas": (0.9, 0.95),
    }
    assert found.metadata["planner_data"]["model.w"] == ("model", "w")
    assert set(found.files["__0_0.distcp"]) == {"model.w", "model.n", "opt.lr", "opt.betas"}
    file = open_distcp(found.folder / "__0_0.distcp")
    assert (file.state["opt.lr"], file.state["opt.betas"]) == (0.5, (0.9, 0.95))
    assert file.kind == "distcp"
    assert file.notes == ()


def test_a_tensor_in_many_chunks_is_put_together_as_torch_does(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d", TREE)
    found = open_distributed(folder)
    expected = loaded(folder, found.tensors)
    assert torch.equal(expected["a.w"], WHOLE)
    assert all(same(found.tensors[name], value) for name, value in expected.items())
    assert found.files["__0_0.distcp"] == ("a.w[2:4, 0:3, 0:2]", "a.w[2:3, 3:6, 0:2]", "b")
    assert found.files["__1_0.distcp"] == ("a.w[0:2, 0:6, 0:2]", "a.w[3:4, 3:6, 0:2]", "c")


def test_random_tilings_are_put_together(tmp_path: Path) -> None:
    rng = random.Random(3)

    def cut(start: tuple[int, ...], shape: tuple[int, ...], depth: int) -> list[Box]:
        axes = [axis for axis, n in enumerate(shape) if n > 1]
        if not axes or not depth:
            return [(start, shape)]
        axis = rng.choice(axes)
        at = rng.randrange(1, shape[axis])
        left = (*shape[:axis], at, *shape[axis + 1 :])
        right = (*shape[:axis], shape[axis] - at, *shape[axis + 1 :])
        middle = (*start[:axis], start[axis] + at, *start[axis + 1 :])
        return cut(start, left, depth - 1) + cut(middle, right, depth - 1)

    spiral = torch.arange(11 * 11).reshape(11, 11)
    found = open_distributed(sharded(tmp_path / "spiral", {"w": (spiral, nested(5))}))
    assert same(found.tensors["w"], spiral)
    for number in range(8):
        whole = torch.arange(5 * 7 * 3).reshape(5, 7, 3)
        boxes = cut((0, 0, 0), (5, 7, 3), 4)
        rng.shuffle(boxes)
        found = open_distributed(sharded(tmp_path / str(number), {"w": (whole, boxes)}))
        assert same(found.tensors["w"], whole)


def test_a_real_file_of_megatron_core_opens_with_its_names() -> None:
    file = open_distcp(REAL / "__0_0.distcp")
    places = dcp.FileSystemReader(REAL).read_metadata().storage_data
    theirs = {index: info for index, info in places.items() if info.relative_path == "__0_0.distcp"}
    assert len(file.state) == len(theirs) == 11
    data = file.path.read_bytes()
    for index, info in theirs.items():
        value = torch.load(io.BytesIO(data[info.offset : info.offset + info.length]), weights_only=True)
        if index.offset is None:
            assert file.state[index.fqn] == value
        else:
            box = ", ".join(f"{a}:{a + n}" for a, n in zip(index.offset, value.shape, strict=True))
            assert same(file.state[f"{index.fqn}[{box}]"], value)
    assert file.globals[Global("torch._utils", "_rebuild_tensor_v2")] == 7


def test_a_real_folder_holds_what_torch_loads_from_it() -> None:
    found = open_distributed(REAL)
    entries = dcp.FileSystemReader(REAL).read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size) for name, entry in entries.items() if hasattr(entry, "size")}
    dcp.load(state, checkpoint_id=REAL, no_dist=True)
    assert set(found.tensors) == set(state)
    assert set(found.objects) == set(entries) - set(state)
    for name, expected in state.items():
        assert same(found.tensors[name], expected), name


def test_a_real_folder_without_most_of_its_files_is_refused_with_their_names(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        shutil.copy(REAL / name, tmp_path)
    with pytest.raises(SourceError, match=r"7 of 8 files .* __0_1\.distcp"):
        open_distributed(tmp_path)
    assert read_metadata(tmp_path / ".metadata").tensors["output_layer.weight"].shape == (128, 32)


# -- without .metadata -------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    shutil.copy(REAL / "__0_0.distcp", tmp_path)
    return tmp_path / "__0_0.distcp"


def test_a_lone_file_is_read_by_scanning(alone: Path) -> None:
    named, file = open_distcp(REAL / "__0_0.distcp"), open_distcp(alone)
    assert list(file.state) == [f"item_{n}" for n in range(11)]
    for one, other in zip(named.state.values(), file.state.values(), strict=True):
        if isinstance(one, LazyTensor):
            assert (one.numpy() == other.numpy()).all()
        else:
            assert one == other
    assert "read by scanning: there is no .metadata beside it" in file.notes[0]


def test_a_file_that_metadata_does_not_know_is_scanned(alone: Path) -> None:
    shutil.copy(REAL / ".metadata", alone.parent)
    alone.rename(alone.with_name("other.distcp"))
    file = open_distcp(alone.with_name("other.distcp"))
    assert "does not know it" in file.notes[0]


def test_records_cover_the_pickles_too(alone: Path) -> None:
    data = alone.read_bytes()
    for file in (open_distcp(alone), open_distcp(REAL / "__0_0.distcp")):
        records = file.records()
        assert len({record.name for record in records}) == len(records)
        assert sum(record.name.endswith("/data.pkl") for record in records) == 11
        assert [r.offset for r in records] == sorted(r.offset for r in records)
        assert all(r.crc == zlib.crc32(data[r.offset : r.offset + r.nbytes]) for r in records)
        assert {storage.offset for storage in file.storages.values()} <= {record.offset for record in records}


def test_a_scan_reads_no_tensor(tmp_path: Path) -> None:
    saved(tmp_path / "d", {"a": torch.ones(1 << 20), "b": torch.ones(1 << 20)})
    (tmp_path / "d" / ".metadata").unlink()
    before = read_nbytes()
    assert len(open_distcp(tmp_path / "d" / "__0_0.distcp").tensors()) == 2
    assert read_nbytes() - before < 64 << 10


def test_a_lone_file_cut_off_anywhere_is_damaged(alone: Path) -> None:
    data = alone.read_bytes()
    whole = {item.offset + item.nbytes for item in items_of_real()}
    rng = random.Random(4)
    for length in {*rng.sample(range(1, len(data)), 150), *range(len(data) - 100, len(data))} - whole:
        alone.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            open_distcp(alone)
    alone.write_bytes(b"")
    with pytest.raises(UnsupportedError, match="empty"):
        open_distcp(alone)


def items_of_real() -> list[Any]:
    return [item for item in read_metadata(REAL / ".metadata").items.values() if item.file == "__0_0.distcp"]


def test_a_zip_without_zip64_records_is_found_too(tmp_path: Path) -> None:
    import zipfile

    parts = b""
    for number in range(2):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a/data.pkl", pickle.dumps(number, 2))
        parts += buffer.getvalue()
    (tmp_path / "a.distcp").write_bytes(parts)
    assert open_distcp(tmp_path / "a.distcp").state == {"item_0": 0, "item_1": 1}


# -- what is refused ---------------------------------------------------------------------------------------------------


def place(whole: Any, name: str, **changes: Any) -> None:
    """Change where an item of a name is said to be."""
    for index, info in whole.storage_data.items():
        if index.fqn == name:
            whole.storage_data[index] = dataclasses.replace(info, **changes)


def chunk(whole: Any, number: int, start: Any, shape: Any) -> None:
    """Change a chunk of a.w, and what is stored at its place."""
    before = whole.state_dict_metadata["a.w"].chunks[number]
    info = whole.storage_data.pop(metadata.MetadataIndex("a.w", before.offsets))
    whole.state_dict_metadata["a.w"].chunks[number] = metadata.ChunkStorageMetadata(start, shape)
    if start is not None:
        whole.storage_data[metadata.MetadataIndex("a.w", start)] = info


def absent(whole: Any) -> None:
    whole.storage_data.clear()


def set_size(size: Any) -> Edit:
    def edit(whole: Any) -> None:
        whole.state_dict_metadata["a.w"].size = size

    return edit


def set_dtype(dtype: Any) -> Edit:
    def edit(whole: Any) -> None:
        whole.state_dict_metadata["b"].properties.dtype = dtype

    return edit


EDITS: dict[str, tuple[Edit, type[StreamconvError]]] = {
    "a path above": (lambda w: place(w, "b", relative_path="../__0_0.distcp"), UnsafeError),
    "an absolute path": (lambda w: place(w, "b", relative_path="/etc/passwd"), UnsafeError),
    "a folder below": (lambda w: place(w, "b", relative_path="x/__0_0.distcp"), UnsafeError),
    "the folder": (lambda w: place(w, "b", relative_path=".."), UnsafeError),
    "no path": (lambda w: place(w, "b", relative_path=""), UnsafeError),
    "a path with a zero": (lambda w: place(w, "b", relative_path="a\0b"), UnsafeError),
    "a number as a path": (lambda w: place(w, "b", relative_path=5), UnsafeError),
    "a file that is not there": (lambda w: place(w, "b", relative_path="__9_0.distcp"), SourceError),
    "an item behind the end": (lambda w: place(w, "b", offset=1 << 40), DamagedError),
    "a negative offset": (lambda w: place(w, "b", offset=-1), DamagedError),
    "an item that is too long": (lambda w: place(w, "b", length=1 << 40), DamagedError),
    "an item that is too short": (lambda w: place(w, "c", length=100), DamagedError),
    "items that overlap": (lambda w: place(w, "b", offset=10), DamagedError),
    "a compressed item": (lambda w: place(w, "b", transform_descriptors=["stream.zstd/1"]), UnsupportedError),
    "nothing stored": (absent, DamagedError),
    "chunks that overlap": (lambda w: chunk(w, 2, (2, 2, 0), (1, 3, 2)), DamagedError),
    "chunks with a hole": (lambda w: chunk(w, 2, (2, 3, 0), (1, 2, 2)), DamagedError),
    "a chunk outside": (lambda w: chunk(w, 2, (4, 3, 0), (1, 3, 2)), DamagedError),
    "a negative chunk": (lambda w: chunk(w, 2, (2, 3, 0), (-1, -3, 2)), DamagedError),
    "a chunk of other axes": (lambda w: chunk(w, 2, (2, 3), (1, 3)), DamagedError),
    "a chunk of another shape": (lambda w: chunk(w, 1, (0, 0, 0), (2, 6, 2, 1)), DamagedError),
    "two chunks in one place": (lambda w: chunk(w, 2, (3, 3, 0), (1, 3, 2)), DamagedError),
    "a chunk without offsets": (lambda w: chunk(w, 2, None, (1, 3, 2)), DamagedError),
    "a larger tensor": (set_size(torch.Size((4, 6, 3))), DamagedError),
    "a huge tensor": (set_size((1 << 70, 6, 3)), DamagedError),
    "a negative tensor": (set_size((-4, -6, 2)), DamagedError),
    "a size that is none": (set_size("4"), DamagedError),
    "another dtype": (set_dtype(torch.float32), DamagedError),
    "an unknown dtype": (set_dtype(torch.quint8), UnsupportedError),
    "no dtype": (set_dtype(5), DamagedError),
}


@pytest.mark.parametrize("case", EDITS)
def test_metadata_that_makes_no_sense_is_refused(case: str, tmp_path: Path) -> None:
    edit, error = EDITS[case]
    folder = sharded(tmp_path / "d", TREE, edit)
    with pytest.raises(error):
        open_distributed(folder)


def test_a_spiral_with_two_boxes_that_overlap_is_damaged(tmp_path: Path) -> None:
    boxes = nested(5)
    boxes[4], boxes[5] = ((1, 2), (1, 8)), ((1, 9), (8, 1))
    with pytest.raises(DamagedError, match=r"do not tile it: those at \(1, 2\) and \(1, 9\) overlap"):
        open_distributed(sharded(tmp_path / "d", {"w": (torch.zeros(11, 11), boxes)}))


@pytest.mark.slow
def test_many_chunks_are_looked_at_only_if_they_are_in_some_order(tmp_path: Path) -> None:
    """A grid of 24 x 24 x 24, and a spiral of 401 boxes that could only be compared each with each."""
    one = {axis: [(number,) for number in range(24)] for axis in range(3)}
    grid = [((*a, *b, *c), (1, 1, 1)) for a in one[0] for b in one[1] for c in one[2]]
    for name, boxes, size in (("grid", grid, (24, 24, 24)), ("spiral", nested(100), (201, 201))):
        chunks = [metadata.ChunkStorageMetadata(torch.Size(start), torch.Size(shape)) for start, shape in boxes]
        properties = metadata.TensorProperties.create_from_tensor(torch.zeros(1))
        places = {metadata.MetadataIndex("w", torch.Size(start)): n for n, (start, _) in enumerate(boxes)}
        stored = {index: filesystem._StorageInfo("__0_0.distcp", 4 * n, 4) for index, n in places.items()}
        described = {"w": metadata.TensorStorageMetadata(properties, torch.Size(size), chunks)}
        (tmp_path / name).write_bytes(pickle.dumps(metadata.Metadata(described, None, stored)))
    assert len(read_metadata(tmp_path / "grid").tensors["w"].chunks) == 24**3
    with pytest.raises(DamagedError, match="401 in no order, too many to tell"):
        read_metadata(tmp_path / "spiral")


def test_a_chunk_of_fewer_bytes_than_elements_is_damaged(tmp_path: Path) -> None:
    """``dcp.save`` clones what is expanded; by hand a file of some bytes can be said to hold any number of rows."""
    folder = sharded(tmp_path / "d", {"w": (torch.zeros(2, 3), [((0, 0), (2, 3))])})
    buffer = io.BytesIO()
    torch.save(torch.zeros(1, 3).expand(100_000, 3), buffer)
    whole = pickle.loads((folder / ".metadata").read_bytes())
    index = metadata.MetadataIndex("w", torch.Size((0, 0)))
    whole.state_dict_metadata["w"].size = torch.Size((100_000, 3))
    whole.state_dict_metadata["w"].chunks[0] = metadata.ChunkStorageMetadata(
        torch.Size((0, 0)), torch.Size((100_000, 3))
    )
    whole.storage_data = {index: filesystem._StorageInfo("__0_0.distcp", 0, buffer.tell())}
    (folder / "__0_0.distcp").write_bytes(buffer.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    with pytest.raises(DamagedError, match=r"w at \(0, 0\) is \(100000, 3\), 1200000 bytes: they are not in"):
        open_distributed(folder)


def test_chunks_of_one_shape_that_trade_places_are_torchs_too(tmp_path: Path) -> None:
    """Nothing but .metadata says where a chunk belongs."""

    def trade(whole: Any) -> None:
        one, other = (metadata.MetadataIndex("a.w", start) for start in ((2, 3, 0), (3, 3, 0)))
        places = whole.storage_data
        places[one], places[other] = places[other], places[one]

    folder = sharded(tmp_path / "d", TREE, trade)
    found = open_distributed(folder).tensors
    assert same(found["a.w"], loaded(folder, found)["a.w"])
    assert not same(found["a.w"], WHOLE)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_metadata_that_would_run_a_command_does_not(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def edit(whole: Any) -> None:
        whole.planner_data = _Evil(mark)

    found = open_distributed(sharded(tmp_path / "d", TREE, edit))
    assert not mark.exists()
    assert found.globals[Global(os.system.__module__, "system")] == 1
    (tmp_path / "d" / ".metadata").write_bytes(pickle.dumps(_Evil(mark)))
    with pytest.raises(DamagedError, match=r"Metadata was due, found a posix\.system"):
        open_distributed(tmp_path / "d")
    with pytest.raises(DamagedError):
        open_distcp(tmp_path / "d" / "__0_0.distcp")
    assert not mark.exists()


def test_an_object_that_is_no_zip_is_left_as_bytes(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", {"o": io.BytesIO(b"hello"), "w": torch.ones(2)})
    whole = pickle.loads((folder / ".metadata").read_bytes())
    data = (folder / "__0_0.distcp").read_bytes()
    (info,) = (info for index, info in whole.storage_data.items() if index.fqn == "o")
    (folder / "__0_0.distcp").write_bytes(data[: info.offset] + b"X" * info.length + data[info.offset + info.length :])
    found = open_distributed(folder)
    place = found.value("o")
    assert isinstance(place, Storage)
    assert (place.offset, place.nbytes) == (info.offset, info.length)
    file = open_distcp(folder / "__0_0.distcp")
    assert isinstance(file.state["o"], Storage)
    assert "1 objects are no torch zips" in file.notes[0]
    assert "o" in {record.name for record in file.records()}


def test_an_object_where_a_tensor_is_due_is_damaged(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d", TREE)
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    whole = pickle.loads((folder / ".metadata").read_bytes())
    place(whole, "c", offset=0, length=buffer.tell(), relative_path="x.distcp")
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    (folder / "x.distcp").write_bytes(buffer.getvalue())
    with pytest.raises(DamagedError, match="begins no tensor"):
        open_distributed(folder)


@pytest.mark.slow
def test_metadata_cut_off_is_damaged(tmp_path: Path) -> None:
    data = (REAL / ".metadata").read_bytes()
    path = tmp_path / ".metadata"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            read_metadata(path)


def test_a_folder_without_metadata_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_distributed(tmp_path)


@pytest.mark.slow
def test_changed_bytes_of_metadata_never_raise_anything_else(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d", TREE)
    data = (folder / ".metadata").read_bytes()
    rng = random.Random(9)
    for spot in range(len(data)):
        changed = bytearray(data)
        changed[spot] = rng.choice((0, 1, 0xFF, 0x80, changed[spot] ^ 1 << rng.randrange(8), rng.randrange(256)))
        (folder / ".metadata").write_bytes(changed)
        quietly(lambda: open_distributed(folder))


def test_changed_bytes_of_a_lone_file_never_raise_anything_else(alone: Path) -> None:
    data = alone.read_bytes()[-3410:]
    rng = random.Random(10)
    for _ in range(800):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.randrange(len(data))] = rng.choice((0, 1, 0xFF, 0x80, rng.randrange(256)))
        alone.write_bytes(changed)
        quietly(lambda: open_distcp(alone))


def quietly(opening: Callable[[], Any]) -> None:
    try:
        found = opening()
    except StreamconvError:
        return
    if isinstance(found, StoredFile):
        found.tensors()


def test_the_module_gives_what_it_says() -> None:
    assert set(ours.__all__) == {"DistributedCheckpoint", "item_label", "open_distcp", "open_distributed"}
