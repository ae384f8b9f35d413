"""What is streamed is what a conversion writes: the same names for the same ranks, and the same bits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamconv import convert, stream
from streamconv.core.errors import (
    AmbiguousError,
    DamagedError,
    DifferenceError,
    MemoryBudgetError,
    SourceError,
    StorageError,
    UsageError,
)
from streamconv.core.layout import RankCoordinates
from streamconv.execution.stream import StreamedTensor
from tests import oracle
from tests.places import FRAMEWORKS, LABELLED, REAL, Source

pytestmark = pytest.mark.slow

SOURCES = [*REAL, *LABELLED]
BLOOM, GPT = REAL[1], REAL[4]
Named = dict[tuple[RankCoordinates, str], torch.Tensor]


def flat(state: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(dotted name, tensor) of all tensors of a state dict."""
    for key, value in state.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, torch.Tensor):
            yield name, value
        else:
            yield from flat(value, name)


def converted(source: Path, out: Path, has_tp: int, has_pp: int, **choices: Any) -> Named:
    convert(source, out, max_ram="2G", **choices, to="megatron-legacy")
    files = oracle.result_files(out, has_tp, has_pp)
    return {
        (RankCoordinates(*place), name): tensor
        for place, state in files.items()
        for name, tensor in flat(state["model"])
    }


def streamed(source: Path, **choices: Any) -> list[StreamedTensor]:
    return list(stream(source, copy=True, max_ram="4G", **choices, to="megatron-legacy"))


def bits(tensor: Any) -> bytes:
    """The bytes of a torch tensor or a numpy array."""
    array = tensor.contiguous().view(torch.uint8).numpy() if isinstance(tensor, torch.Tensor) else tensor
    return bytes(np.ascontiguousarray(array).tobytes())


def assert_same(found: list[StreamedTensor], expected: Named) -> None:
    places = [(item.rank, item.name) for item in found]
    assert len(places) == len(set(places))
    assert set(places) == set(expected)
    for item in found:
        tensor = expected[item.rank, item.name]
        assert (item.tensor.shape, item.tensor.dtype) == (tensor.shape, tensor.dtype), item.name
        assert bits(item.tensor) == bits(tensor), (item.rank, item.name)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("layout", [None, (1, 1), (4, 2)], ids=["own layout", "tp1pp1", "tp4pp2"])
def test_what_is_streamed_is_what_is_written(source: Source, layout: tuple[int, int] | None, tmp_path: Path) -> None:
    tp, pp = layout or (source.tp, source.pp)
    choices = {} if layout is None else {"tp": tp, "pp": pp}
    expected = converted(source.folder, tmp_path / "out", tp, pp, **choices)
    for io, jobs in (("direct", 2), ("pread", 1), ("direct", 3)):
        assert_same(streamed(source.folder, io=io, jobs=jobs, **choices), expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_cast_is_streamed_as_it_is_written(dtype: str, tmp_path: Path) -> None:
    for number, source in enumerate((REAL[1], REAL[3])):
        expected = converted(source.folder, tmp_path / f"{number}", 4, 1, dtype=dtype, tp=4, pp=1)
        assert_same(streamed(source.folder, dtype=dtype, tp=4, pp=1), expected)
        assert {tensor.dtype for tensor in expected.values()} == {
            {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
        }


@pytest.mark.parametrize("source", [REAL[0], REAL[6], LABELLED[1], LABELLED[4]], ids=lambda source: source.name)
@pytest.mark.parametrize("pp", [1, 3])
def test_layers_come_in_order_and_each_all_at_once(source: Source, pp: int) -> None:
    found = streamed(source.folder, tp=2, pp=pp)
    runs = [layer for layer, _ in groupby(item.layer for item in found)]
    numbers = [layer for layer in runs if layer is not None]
    assert numbers == list(range(sum(source.stages)))
    assert runs == [None, *numbers, None]
    for item in found:
        local = re.search(r"\.layers\.(\d+)\.", item.name)
        assert (item.layer is None) == (local is None)
        if local is not None and pp == 1:
            assert item.layer == int(local[1])
    if pp == 1:  # the shards of one parameter follow each other, but for the names of a tied one, which alternate
        names = [item.name for item in found if "word_embeddings" not in item.name]
        assert len([name for name, _ in groupby(names)]) == len(set(names)) == len(names) // 2


@pytest.mark.parametrize("pp", [1, 2])
def test_tied_names_share_their_values_with_the_embedding(pp: int) -> None:
    found = {(item.rank, item.name): item.tensor for item in streamed(BLOOM.folder, tp=2, pp=pp)}
    for rank in range(2):
        head = found[RankCoordinates(rank, pp - 1), "word_embeddings_for_head.weight"]
        assert torch.equal(head, found[RankCoordinates(rank, 0), "language_model.embedding.word_embeddings.weight"])
    tensors = {
        item.name: item.tensor.data_ptr()
        for item in stream(BLOOM.folder, max_ram="4G", tp=1, pp=1, to="megatron-legacy")
        if "word_embeddings" in item.name and item.name.endswith(("embeddings.weight", "head.weight"))
    }
    assert len(tensors) == 2
    assert len(set(tensors.values())) == 1, "one stored tensor under two names"


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_copy_stays_valid_when_all_has_been_read(tmp_path: Path) -> None:
    expected = converted(GPT.folder, tmp_path / "out", 2, 2)
    kept = list(stream(GPT.folder, copy=True, max_ram="4G", to="megatron-legacy"))
    assert_same(kept, expected)
    assert len({item.tensor.data_ptr() for item in kept}) == len(kept)
    kept[0].tensor.fill_(7)
    del expected[kept[0].rank, kept[0].name]
    assert_same(kept[1:], expected)


def test_without_a_copy_a_tensor_is_right_when_it_comes_and_another_when_the_next_parameter_has_come(
    tmp_path: Path,
) -> None:
    expected = converted(GPT.folder, tmp_path / "out", 2, 2)
    kept = []
    for item in stream(GPT.folder, max_ram="4G", to="megatron-legacy"):
        assert bits(item.tensor) == bits(expected[item.rank, item.name])
        kept.append(item)
    changed = [item for item in kept if bits(item.tensor) != bits(expected[item.rank, item.name])]
    assert changed
    assert len({item.tensor.data_ptr() for item in kept}) < len(kept) / 4


def test_numpy_arrays_have_the_same_bits_as_torch_tensors() -> None:
    for source, choices in ((REAL[3], {}), (REAL[2], {}), (REAL[1], {"tp": 1, "pp": 3}), (REAL[1], {"dtype": "bf16"})):
        tensors = streamed(source.folder, **choices)
        arrays = streamed(source.folder, framework="np", **choices)
        assert [item[:3] for item in tensors] == [item[:3] for item in arrays]
        for torch_item, numpy_item in zip(tensors, arrays, strict=True):
            assert isinstance(numpy_item.tensor, np.ndarray)
            assert numpy_item.tensor.shape == tuple(torch_item.tensor.shape)
            assert str(torch_item.tensor.dtype) == f"torch.{numpy_item.tensor.dtype}"
            assert bits(numpy_item.tensor) == bits(torch_item.tensor)
        views = [
            item.tensor.copy()
            for item in stream(source.folder, framework="np", max_ram="4G", **choices, to="megatron-legacy")
        ]
        assert list(map(bits, views)) == [bits(item.tensor) for item in arrays]


def test_an_iteration_that_is_given_up_leaves_no_descriptor() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    for count in (0, 1, 5):
        iterator = stream(BLOOM.folder, max_ram="4G", to="megatron-legacy")
        for _ in range(count):
            next(iterator)
        del iterator
    assert sorted(Path("/proc/self/fd").iterdir()) == before


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "error", "says"),
    [
        ({"framework": "tf"}, UsageError, "'tf'"),
        ({"framework": "jax"}, UsageError, "choose one of pt, np"),
        ({"tp": 3}, (UsageError, SourceError), "do not divide"),
        ({"tp": 0}, UsageError, "tp=0: must be at least 1"),
        ({"pp": 5}, UsageError, "4 layers"),
        ({"dtype": "int4"}, UsageError, "dtype='int4'"),
        ({"io": "telepathy"}, UsageError, "io='telepathy'"),
        ({"jobs": 0}, UsageError, "jobs=0"),
        ({"block_size": "1K"}, UsageError, 'block_size="1K": a row'),
        ({"max_ram": "8M"}, MemoryBudgetError, "workable floor"),
        ({"to": "onnx"}, UsageError, "to='onnx'"),
    ],
)
def test_what_can_be_refused_is_refused_by_the_call_itself(choices: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        stream(BLOOM.folder, **choices)


def test_a_source_that_cannot_be_planned_is_refused_by_the_call_itself(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        stream(tmp_path / "nowhere", to="megatron-legacy")
    with pytest.raises(AmbiguousError, match="number of attention heads is unknown"):
        stream(FRAMEWORKS / "mcore_llama_dist_tp2pp2", to="megatron-legacy")
    with pytest.raises(SourceError, match="a model without config"):
        stream(FRAMEWORKS / "z1_bf16", to="megatron-legacy")
    folder = Path(shutil.copytree(BLOOM.folder / "global_step3", tmp_path / "layers"))
    for path in folder.glob("mp_rank_*"):
        path.unlink()
    with pytest.raises(AmbiguousError):
        stream(folder, to="megatron-legacy")


@pytest.mark.parametrize("copy", [False, True])
def test_the_budget_that_is_said_is_one_that_works(copy: bool) -> None:
    with pytest.raises(MemoryBudgetError, match="workable floor") as caught:
        stream(GPT.folder, copy=copy, max_ram="8M", to="megatron-legacy")
    found = re.search(r'say max_ram="(\d+)M" or more', str(caught.value))
    assert found
    names = {item.name for item in stream(GPT.folder, copy=copy, max_ram=f"{int(found[1]) + 1}M", to="megatron-legacy")}
    assert names == {item.name for item in streamed(GPT.folder)}
    with pytest.raises(MemoryBudgetError, match="workable floor"):
        stream(GPT.folder, copy=copy, max_ram=f"{int(found[1]) - 8}M", to="megatron-legacy")


# -- damage ------------------------------------------------------------------------------------------------------------


def damaged(tmp_path: Path, name: str, key: str) -> Path:
    """A copy of the source in which one byte of one tensor is another."""
    root = Path(shutil.copytree(BLOOM.folder, tmp_path / "copy"))
    path = root / "global_step3" / name
    data = bytearray(path.read_bytes())
    place = data.find(bits(torch.load(path)[key]))
    assert place > 0
    data[place + 1001] ^= 0x10
    path.write_bytes(data)
    return root


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("copy", [False, True])
def test_a_flipped_byte_is_found_before_the_last_shard_of_its_tensor(copy: bool, tp: int, tmp_path: Path) -> None:
    key = "self_attention.query_key_value.weight"
    root = damaged(tmp_path, "layer_04-model_01-model_states.pt", key)
    seen: list[tuple[int | None, int]] = []
    iterator = stream(root, copy=copy, tp=tp, max_ram="4G", to="megatron-legacy")
    with pytest.raises(DamagedError, match="its CRC-32") as caught:
        seen.extend((item.layer, item.rank.tp) for item in iterator if item.name.endswith(key))
    assert "layer_04-model_01-model_states.pt" in str(caught.value)
    assert (0, tp - 1) in seen
    assert (1, tp - 1) not in seen
    assert next(iterator, None) is None


def test_a_file_that_is_cut_off_is_found(tmp_path: Path) -> None:
    root = Path(shutil.copytree(BLOOM.folder, tmp_path / "copy"))
    iterator = stream(root, max_ram="4G", to="megatron-legacy")
    next(iterator)
    path = root / "global_step3" / "layer_06-model_01-model_states.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StorageError, match="all were when the file was opened"):
        list(iterator)


def test_replicas_that_differ_are_said_or_refused_by_the_call_itself(tmp_path: Path) -> None:
    root = Path(shutil.copytree(BLOOM.folder, tmp_path / "copy"))
    path = root / "global_step3" / "layer_03-model_01-model_states.pt"
    state = torch.load(path)
    state["input_layernorm.weight"][3] += 0.5
    torch.save(state, path)
    with pytest.raises(DifferenceError, match="replicated parameters differ"):
        stream(root, replicated="fail", max_ram="4G", to="megatron-legacy")
    with pytest.warns(UserWarning, match="input_layernorm.weight differs between ranks in 1 elements"):
        iterator = stream(root, max_ram="4G", to="megatron-legacy")
    with pytest.warns(UserWarning, match="the mean counts"):
        mean = streamed(root, replicated="mean", tp=1, pp=1)
    first = [
        item.tensor for item in iterator if item.layer == 0 and item.name.endswith("layers.0.input_layernorm.weight")
    ]
    (middle,) = (item.tensor for item in mean if item.name.endswith("layers.0.input_layernorm.weight"))
    assert len(first) == 2
    assert float(middle[3]) == pytest.approx(float(state["input_layernorm.weight"][3]) - 0.25)
