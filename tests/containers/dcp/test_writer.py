"""Our ``.distcp`` files are torch's own byte for byte, our ``.metadata`` says what torch's says, torch loads both."""

from __future__ import annotations

import dataclasses
import io
import pickle
import random
import tracemalloc
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv.containers.dcp.metadata_writer import StoredItem, WholeTensor, metadata_bytes
from streamconv.containers.dcp.reader import open_distcp, open_distributed
from streamconv.containers.dcp.writer import DistcpLayout, ItemKey, plan_distcp_file, torch_bytes
from streamconv.containers.pickles.writer import StoredTensor
from streamconv.containers.torch_save.zip_writer import plan_torch_file
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import UnsupportedError
from tests.containers.torch_save.test_zip_reader import random_tensor, same
from tests.containers.torch_save.test_zip_writer import without_id
from tests.places import FRAMEWORKS

dcp: Any = pytest.importorskip("torch.distributed.checkpoint")
REAL = FRAMEWORKS / "mcore_llama_dist_tp2pp2"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")
STORED = [name for name, dtype in DTYPES.items() if dtype.storage]

Box = tuple[tuple[int, ...], tuple[int, ...]]


# -- a folder written by our code, from torch's tensors ---------------------------------------------------------------


def bits(tensor: Any) -> bytes:
    data: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def dtype_of(tensor: Any) -> Any:
    return DTYPES[str(tensor.dtype).removeprefix("torch.")]


def planned(items: Mapping[ItemKey, Any]) -> DistcpLayout:
    """The layout of tensors and of objects that are bytes already."""
    tree: dict[ItemKey, StoredTensor | bytes] = {}
    count = 0
    for key, value in items.items():
        if isinstance(value, bytes):
            tree[key] = value
        else:
            tree[key] = StoredTensor(count, dtype_of(value), tuple(value.shape))
            count += 1
    return plan_distcp_file(tree)


def write(path: Path, items: Mapping[ItemKey, Any]) -> list[StoredItem]:
    layout = planned(items)
    data = [bits(value) for value in items.values() if not isinstance(value, bytes)]
    seen = [0] * layout.nbytes
    with path.open("wb") as file:
        frame = layout.frame({key: zlib.crc32(content) for key, content in enumerate(data)})
        tensors = ((offset, content) for (offset, _), content in zip(layout.storages, data, strict=True))
        for offset, content in (*frame, *tensors):
            file.seek(offset)
            file.write(content)
            for place in range(offset, offset + len(content)):
                seen[place] += 1
    assert set(seen) <= {1}  # every byte once
    assert [nbytes for _, nbytes in layout.storages] == list(map(len, data))
    return [stored(path.name, item, items[item[0]]) for item in layout.items]


def stored(file: str, item: tuple[ItemKey, int, int], value: Any) -> StoredItem:
    (name, start), offset, nbytes = item
    return StoredItem(file, name, start, None if start is None else tuple(value.shape), offset, nbytes)


def cut(tensor: Any, box: Box) -> Any:
    return tensor[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))]


def folder_of(
    folder: Path, tensors: Mapping[str, tuple[Any, Sequence[Box]]], objects: Mapping[str, Any], files: int = 3
) -> Path:
    """Chunks and objects dealt out to the files in turn."""
    folder.mkdir()
    parts: list[dict[ItemKey, Any]] = [{} for _ in range(files)]
    everything: list[tuple[ItemKey, Any]] = [((name, None), torch_bytes(value)) for name, value in objects.items()]
    everything += [((n, box[0]), cut(tensor, box)) for n, (tensor, boxes) in tensors.items() for box in boxes]
    for number, (key, value) in enumerate(everything):
        parts[number % files][key] = value
    items = [item for n, part in enumerate(parts) for item in write(folder / f"__{n}_0.distcp", part)]
    whole = {name: WholeTensor(tuple(tensor.shape), dtype_of(tensor)) for name, (tensor, _) in tensors.items()}
    (folder / ".metadata").write_bytes(metadata_bytes(whole, items))
    return folder


def grid(shape: Sequence[int], cuts: Sequence[int]) -> list[Box]:
    """The boxes of a tensor that is cut into equal parts along its axes."""
    size = tuple(n // c for n, c in zip(shape, cuts, strict=True))
    return [(tuple(i * n for i, n in zip(at, size, strict=True)), size) for at in product(*map(range, cuts))]


def labelled(name: str, shape: Sequence[int], first: int) -> Any:
    """A tensor whose every element says by its bits which element of which tensor it is."""
    dtype = getattr(torch, name)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[DTYPES[name].itemsize]
    count = torch.Size(shape).numel()
    return (torch.arange(first, first + count) % (1 << 15)).to(kind).view(dtype).reshape(tuple(shape))


def model() -> dict[str, tuple[Any, list[Box]]]:
    """Tensors as ranks of a model would store them: TP splits of rows and columns, layers stacked, odd ones whole."""
    shapes: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]] = [
        ("embedding.word_embeddings.weight", "bfloat16", (32, 12), (4, 1)),
        ("decoder.layers.self_attention.linear_qkv.weight", "bfloat16", (3, 16, 12), (3, 4, 1)),
        ("decoder.layers.self_attention.linear_proj.weight", "float16", (3, 12, 8), (3, 1, 4)),
        ("decoder.layers.mlp.linear_fc1.weight", "float32", (3, 32, 12), (3, 8, 1)),
        ("decoder.layers.input_layernorm.weight", "float32", (3, 12), (3, 1)),
        ("decoder.final_layernorm.weight", "float32", (12,), (1,)),
        ("grid", "float16", (12, 20), (3, 5)),
        ("rotary.Größe 模型 😀 \ud800", "bfloat16", (7,), (7,)),
        ("steps", "int64", (), ()),
        ("nothing", "float32", (0, 5), (1, 1)),
    ]
    made: dict[str, tuple[Any, list[Box]]] = {}
    first = 1
    for name, dtype, shape, cuts in shapes:
        made[name] = labelled(dtype, shape, first), grid(shape, cuts)
        first += torch.Size(shape).numel()
    return made


OBJECTS = {"decoder.layers.mlp._extra_state/shard_0_3": [None], "größe": {"lr": 0.5, "betas": (0.9, 0.95)}}


def loaded(folder: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    tree = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    dcp.load(tree, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return tree


# -- .distcp: torch's own bytes ----------------------------------------------------------------------------------------


def saved(folder: Path, tree: Mapping[str, Any]) -> Any:
    """What torch writes itself, and the metadata that it makes."""
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(dict(tree), storage_writer=dcp.FileSystemWriter(folder), planner=planner, no_dist=True)
    return pickle.loads((folder / ".metadata").read_bytes())


def key_of(index: Any) -> ItemKey:
    return index.fqn, None if index.offset is None else tuple(index.offset)


def without_ids(data: bytes, places: Iterable[Any]) -> list[bytes]:
    return [without_id(data[place.offset : place.offset + place.length], "archive") for place in places]


def assorted() -> dict[str, Any]:
    tree: dict[str, Any] = {name: random_tensor(name, 6, 5) for name in STORED}
    tree |= {
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "row": torch.arange(7.0),
        "row again": torch.arange(7.0) + 1,
        "empty": torch.empty(0, 3),
        "Größe 模型 😀": torch.ones(2, 3, 4, 5, dtype=torch.float16),
        "large": torch.arange(70000),
        "objects/none": [None],
        "objects/dict": {"a": [1, 2.5, "drei", None, True], "b": (1,)},
    }
    return tree


def test_the_file_is_torchs_own_but_for_the_ids(tmp_path: Path) -> None:
    tree = assorted()
    theirs = saved(tmp_path / "theirs", tree)
    ordered = sorted(theirs.storage_data.items(), key=lambda item: (item[1].offset, item[1].length))
    items = {
        key_of(index): torch_bytes(tree[index.fqn]) if index.offset is None else tree[index.fqn] for index, _ in ordered
    }
    ours = write(tmp_path / "ours.distcp", items)
    places = [place for _, place in ordered]
    assert [(item.offset, item.nbytes) for item in ours] == [(place.offset, place.length) for place in places]
    (file,) = (tmp_path / "theirs").glob("*.distcp")
    assert (tmp_path / "ours.distcp").stat().st_size == file.stat().st_size
    mine = without_ids((tmp_path / "ours.distcp").read_bytes(), places)
    assert mine == without_ids(file.read_bytes(), places)


@pytest.mark.parametrize("file", sorted(path.name for path in REAL.glob("*.distcp")))
def test_a_file_of_megatron_core_is_laid_out_as_it_is(file: str, tmp_path: Path) -> None:
    places = {
        index: place
        for index, place in pickle.loads((REAL / ".metadata").read_bytes()).storage_data.items()
        if place.relative_path == file
    }
    data = (REAL / file).read_bytes()
    ordered = sorted(places.items(), key=lambda item: int(item[1].offset))
    items: dict[ItemKey, Any] = {}
    for index, place in ordered:
        part = torch.load(io.BytesIO(data[place.offset : place.offset + place.length]), weights_only=True)
        items[key_of(index)] = part if isinstance(part, torch.Tensor) else torch_bytes(part)
    write(tmp_path / file, items)
    in_order = [place for _, place in ordered]
    assert without_ids((tmp_path / file).read_bytes(), in_order) == without_ids(data, in_order)


@pytest.mark.parametrize("tree", [[None], {}, {"args": {"lr": 0.1}, "iteration": 7, "names": ["a", "b"]}])
@pytest.mark.parametrize("archive", ["archive", "common"])
def test_plain_data_are_what_torch_saves(tree: Any, archive: str, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / f"{archive}.pt")
    theirs = (tmp_path / f"{archive}.pt").read_bytes()
    ours = torch_bytes(tree) if archive == "archive" else torch_bytes(tree, archive)
    assert without_id(ours, archive) == without_id(theirs, archive)
    assert torch.load(io.BytesIO(ours), weights_only=True) == tree


def test_plain_data_has_no_tensors() -> None:
    with pytest.raises(ValueError, match="plain data only"):
        torch_bytes({"w": StoredTensor(0, DTYPES["float32"], (2,))})
    with pytest.raises(TypeError, match="cannot write a object"):
        torch_bytes([object()])


# -- .metadata: what torch's says --------------------------------------------------------------------------------------


def anonymous(metadata: Any) -> Any:
    """Without the place and the id of the checkpoint, which ours does not say."""
    return dataclasses.replace(metadata, storage_meta=type(metadata.storage_meta)())


def test_the_metadata_equals_what_torch_makes(tmp_path: Path) -> None:
    tree = assorted()
    theirs = saved(tmp_path / "theirs", tree)
    whole = {name: WholeTensor(tuple(t.shape), dtype_of(t)) for name, t in tree.items() if isinstance(t, torch.Tensor)}
    items = [
        stored(place.relative_path, (key_of(index), place.offset, place.length), tree[index.fqn])
        for index, place in theirs.storage_data.items()
    ]
    ours = pickle.loads(metadata_bytes(whole, items))
    assert ours == anonymous(theirs)
    assert {k: vars(v) for k, v in ours.storage_data.items()} == {k: vars(v) for k, v in theirs.storage_data.items()}
    assert ours.mcore_data == {}
    assert vars(ours).keys() - {"mcore_data"} == vars(theirs).keys()


def test_the_metadata_equals_that_of_megatron_core() -> None:
    theirs = pickle.loads((REAL / ".metadata").read_bytes())
    whole: dict[str, WholeTensor] = {}
    shapes: dict[ItemKey, tuple[int, ...]] = {}
    for name, entry in theirs.state_dict_metadata.items():
        if hasattr(entry, "size"):
            whole[name] = WholeTensor(tuple(entry.size), DTYPES[str(entry.properties.dtype).removeprefix("torch.")])
            shapes |= {(name, tuple(chunk.offsets)): tuple(chunk.sizes) for chunk in entry.chunks}
    items = [
        StoredItem(place.relative_path, *key_of(index), shapes.get(key_of(index)), place.offset, place.length)
        for index, place in theirs.storage_data.items()
    ]
    # A tensor's chunks stand in the order of the plans, which is not that of the storage_data.
    rank = {key: number for number, key in enumerate(shapes)}
    items.sort(key=lambda item: rank.get((item.name, item.start), -1))
    ours = pickle.loads(metadata_bytes(whole, items))
    assert ours == anonymous(theirs)
    assert [vars(index) for index in ours.storage_data] == [
        vars(index) for index in sorted(theirs.storage_data, key=lambda index: rank.get(key_of(index), -1))
    ]


def test_an_attribute_that_a_release_does_not_know_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata.version and StorageMeta.modules came after 2.4, as did _StorageInfo.transform_descriptors."""
    from torch.distributed.checkpoint import filesystem, metadata

    old_metadata: Any = dataclasses.make_dataclass(
        "Metadata", ["state_dict_metadata", ("planner_data", Any, None), ("storage_data", Any, None)]
    )
    old_meta = dataclasses.make_dataclass("StorageMeta", [("checkpoint_id", Any, None)])
    old_info = dataclasses.make_dataclass("_StorageInfo", ["relative_path", "offset", "length"])
    monkeypatch.setattr(metadata, "Metadata", old_metadata)
    monkeypatch.setattr(metadata, "StorageMeta", old_meta)
    monkeypatch.setattr(filesystem, "_StorageInfo", old_info)
    found: Any = pickle.loads(metadata_bytes({}, [StoredItem("f", "o", None, None, 0, 5)]))
    assert isinstance(found, old_metadata)
    assert found.storage_data == {metadata.MetadataIndex("o"): old_info("f", 0, 5)}


# -- a folder, read by torch and by us ---------------------------------------------------------------------------------


def test_torch_loads_every_element_where_it_belongs(tmp_path: Path) -> None:
    tensors = model()
    folder = folder_of(tmp_path / "d", tensors, OBJECTS)
    expected = {name: tensor for name, (tensor, _) in tensors.items()}
    found = loaded(folder, expected)
    assert all(bits(found[name]) == bits(tensor) for name, tensor in expected.items())
    tree: dict[str, Any] = dict.fromkeys(OBJECTS)
    dcp.load(tree, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    assert tree == OBJECTS


def test_torch_loads_a_part_that_no_chunk_has(tmp_path: Path) -> None:
    """As another tensor-parallel size would ask for it: torch's own planner puts it together from our chunks."""
    from torch.distributed.checkpoint import metadata, planner_helpers

    if not hasattr(planner_helpers, "create_read_items_for_chunk_list"):
        pytest.skip("this torch plans its reads elsewhere")
    whole = labelled("float16", (12, 20), 1)
    folder = folder_of(tmp_path / "d", {"grid": (whole, grid((12, 20), (3, 5)))}, {})
    reader = dcp.FileSystemReader(folder)
    wanted = metadata.ChunkStorageMetadata(torch.Size((3, 1)), torch.Size((6, 17)))
    read = reader.read_metadata()
    reads = planner_helpers.create_read_items_for_chunk_list("grid", read.state_dict_metadata["grid"], [wanted])
    assert sum(item.lengths.numel() for item in reads) == 6 * 17
    target = torch.zeros(6, 17, dtype=torch.float16)

    class Planner(dcp.DefaultLoadPlanner):  # type: ignore[misc]
        def lookup_tensor(self, index: Any) -> Any:
            return target

    planner = Planner()
    planner.set_up_planner({"grid": target}, read, is_coordinator=True)
    reader.set_up_storage_reader(read, is_coordinator=True)
    reader.read_data(dcp.LoadPlan(reads), planner).wait()
    assert torch.equal(target, whole[3:9, 1:18])


def test_our_own_reader_reads_it_back(tmp_path: Path) -> None:
    tensors = model()
    found = open_distributed(folder_of(tmp_path / "d", tensors, OBJECTS))
    assert found.tensors.keys() == tensors.keys()
    assert all(same(found.tensors[name], tensor) for name, (tensor, _) in tensors.items())
    assert {name: found.value(name) for name in found.objects} == OBJECTS
    assert found.metadata["planner_data"] is None
    (tmp_path / "d" / ".metadata").unlink()
    count = sum(len(open_distcp(path).state) for path in sorted(tmp_path.glob("d/*.distcp")))
    assert count == len(OBJECTS) + sum(len(boxes) for _, boxes in tensors.values())


@pytest.mark.parametrize("name", STORED)
def test_each_dtype_is_read_bit_for_bit(name: str, tmp_path: Path) -> None:
    tensors = {"matrix": random_tensor(name, 6, 4), "scalar": random_tensor(name, 1)[0].clone()}
    tree = {
        "matrix": (tensors["matrix"], grid((6, 4), (3, 2))),
        "scalar": (tensors["scalar"], grid((), ())),
    }
    found = loaded(folder_of(tmp_path / "d", tree, {}), tensors)
    assert all(bits(found[key]) == bits(tensor) for key, tensor in tensors.items())


def test_random_grids(tmp_path: Path) -> None:
    rng = random.Random(5)
    for number in range(6):
        tensors = {}
        for name in "abcd":
            cuts = [rng.randrange(1, 4) for _ in range(rng.randrange(4))]
            shape = [c * rng.randrange(1, 5) for c in cuts]
            tensors[name] = labelled(rng.choice(["bfloat16", "float32"]), shape, 1), grid(shape, cuts)
        folder = folder_of(tmp_path / str(number), tensors, {}, files=rng.randrange(1, 5))
        found = loaded(folder, {name: tensor for name, (tensor, _) in tensors.items()})
        assert all(bits(found[name]) == bits(tensor) for name, (tensor, _) in tensors.items())


# -- large, many, wrong ------------------------------------------------------------------------------------------------


def test_items_of_more_than_4_gib(tmp_path: Path) -> None:
    """Each zip counts from its own beginning, so only one that is large itself has zip64 fields."""
    shapes = [(3,), (1 << 32,), (3,), (5 << 32,), ()]
    kind = DTYPES["bfloat16"]
    tensors = {f"w{n}": StoredTensor(n, kind, shape) for n, shape in enumerate(shapes)}
    layout = plan_distcp_file({(name, (0,) * len(tensor.shape)): tensor for name, tensor in tensors.items()})
    alone = [plan_torch_file("archive", StoredTensor(0, kind, shape)) for shape in shapes]
    position = 0
    for zipped, (_, offset, nbytes), (start, size) in zip(alone, layout.items, layout.storages, strict=True):
        assert (offset, nbytes) == (position, zipped.nbytes)
        assert (start - position, size) == zipped.storages[0]
        position += nbytes
    assert layout.nbytes == position > 12 << 32
    path = tmp_path / "__0_0.distcp"
    with path.open("wb") as file:
        for offset, data in layout.frame(dict.fromkeys(range(len(shapes)), 0)):
            file.seek(offset)
            file.write(data)
    assert path.stat().st_size == layout.nbytes
    items = [
        StoredItem(path.name, name, start, tensors[name].shape, offset, nbytes)
        for (name, start), offset, nbytes in layout.items
    ]
    whole = {name: WholeTensor(tensor.shape, kind) for name, tensor in tensors.items()}
    (tmp_path / ".metadata").write_bytes(metadata_bytes(whole, items))
    found = open_distributed(tmp_path)
    assert [found.tensors[f"w{n}"].shape for n in range(len(shapes))] == shapes
    assert [place.offset for place in open_distcp(path).storages.values()] == [start for start, _ in layout.storages]
    read = dcp.FileSystemReader(tmp_path).read_metadata()
    assert [info.offset for info in read.storage_data.values()] == [offset for _, offset, _ in layout.items]


def test_neighbours_are_written_at_once() -> None:
    tree: dict[ItemKey, StoredTensor | bytes] = {("o", None): b"x" * 100}
    tree |= {(f"w{n}", (0,)): StoredTensor(n, DTYPES["float32"], (n % 3,)) for n in range(30)}
    assert len(list(plan_distcp_file(tree).frame(dict.fromkeys(range(30), 0)))) == 21
    large: dict[ItemKey, StoredTensor | bytes] = {(f"o{n}", None): bytes(3 << 19) for n in range(3)}
    assert [(offset, len(data)) for offset, data in plan_distcp_file(large).frame({})] == [
        (n * (3 << 19), 3 << 19) for n in range(3)
    ]


def test_no_items() -> None:
    layout = plan_distcp_file({})
    assert (layout.nbytes, layout.storages, layout.items, list(layout.frame({}))) == (0, (), (), [])
    found = pickle.loads(metadata_bytes({}, []))
    assert (found.state_dict_metadata, found.storage_data) == ({}, {})


def many(layers: int, ranks: int) -> tuple[dict[str, WholeTensor], list[StoredItem]]:
    whole: dict[str, WholeTensor] = {}
    items = []
    for layer, name in product(range(layers), range(12)):
        fqn = f"decoder.layers.{layer}.self_attention.linear_{name}.weight"
        whole[fqn] = WholeTensor((ranks * 640, 8192), DTYPES["bfloat16"])
        items += [
            StoredItem(
                f"__{rank}_0.distcp", fqn, (rank * 640, 0), (640, 8192), (layer * 12 + name) * 10486921, 10486921
            )
            for rank in range(ranks)
        ]
    return whole, items


def test_a_large_model_takes_little_memory() -> None:
    whole, items = many(20, 16)
    tracemalloc.start()
    data = metadata_bytes(whole, items)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) < 150 * len(items)
    assert peak < 1000 * len(items)
    assert len(pickle.loads(data).storage_data) == len(items) == 3840


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_a_type_that_torch_stores_otherwise_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name) as caught:
        plan_distcp_file({("decoder.w", (0,)): StoredTensor(0, DTYPES[name], (4,))})
    assert caught.value.where == "decoder.w"


FLOAT = DTYPES["float32"]


@pytest.mark.parametrize(
    "tree",
    [
        {("a", (0,)): StoredTensor(1, FLOAT, (2,))},
        {("a", (0,)): StoredTensor(0, FLOAT, (2,)), ("b", (0,)): StoredTensor(0, FLOAT, (2,))},
        {("a", None): StoredTensor(0, FLOAT, (2,))},
        {("a", (0, 0)): StoredTensor(0, FLOAT, (2,))},
        {("a", (0,)): b"object"},
    ],
)
def test_a_tree_that_is_no_file_is_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match=r"keys must count up|offsets|cannot begin"):
        plan_distcp_file(tree)


def chunk(start: tuple[int, ...] | None, shape: tuple[int, ...] | None, name: str = "w") -> StoredItem:
    return StoredItem("__0_0.distcp", name, start, shape, 0, 8)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "0 chunks"),
        ([chunk((0, 0), (2, 2)), chunk((0, 0), (2, 2))], "twice"),
        ([chunk((0, 0), (2, 2))], "4 elements of 8"),
        ([chunk((0, 0), (2, 2)), chunk((3, 0), (2, 2))], "leaves it"),
        ([chunk((0,), (8,))], "no chunk of it"),
        ([chunk(None, None)], "no chunk of it"),
        ([chunk((0, 0), (4, 2)), chunk((0,), (1,), "v")], "not described"),
        ([chunk((0, 0), (4, 2)), chunk(None, None, "o"), chunk(None, None, "o")], "twice"),
    ],
)
def test_chunks_that_are_not_all_of_a_tensor_are_refused(items: list[StoredItem], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metadata_bytes({"w": WholeTensor((4, 2), FLOAT)}, items)


def test_equal_checkpoints_are_equal_bytes(tmp_path: Path) -> None:
    one, two = (folder_of(tmp_path / name, model(), OBJECTS) for name in ("one", "two"))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert all((two / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())
