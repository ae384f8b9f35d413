"""Tensors are read in row-major order, wherever their elements are stored, with the smallest buffers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from streamconv.core.errors import DamagedError, MemoryBudgetError
from streamconv.core.lazy import LazyTensor, concat, mean
from streamconv.execution.in_order import OrderedSettings, fit_in_order, read_in_order
from streamconv.execution.settings import EngineSettings
from streamconv.io.checksums import SourceChecksums
from streamconv.values.options import ReadingOptions
from tests.damage import flip, records
from tests.stored import counted, stored

TINY = OrderedSettings(EngineSettings(4096, 2, "pread"), 8192)
ROOMY = OrderedSettings(EngineSettings(1 << 20, 1, "direct"), 1 << 22)


def read(tensors: Mapping[str, LazyTensor], settings: OrderedSettings = TINY) -> dict[str, bytes]:
    found: dict[str, bytes] = defaultdict(bytes)
    order = []
    for name, data in read_in_order(tensors, settings, SourceChecksums()):
        found[name] += bytes(data)
        order.append(name)
    assert order == sorted(order, key=list(tensors).index)
    return found


@pytest.mark.parametrize("settings", [TINY, ROOMY], ids=["tiny", "roomy"])
def test_the_bytes_are_those_of_the_tensor(settings: OrderedSettings, tmp_path: Path) -> None:
    whole = counted(96, 200)
    left, right = whole[:, :80].clone(), whole[:, 80:].clone()
    lazy = stored(tmp_path / "a.pt", whole, left, right, whole.T.contiguous(), counted(3, 2500), torch.tensor(7.0))
    tensors = {
        "whole": lazy[0],
        "by columns": concat([lazy[1], lazy[2]], 1),
        "by rows": concat([lazy[0].slice(0, 50, 96), lazy[0].slice(0, 0, 50)], 0),
        "transposed": lazy[3].permute(1, 0),
        "a column": lazy[0].slice(1, 3, 4),
        "long rows": lazy[4],
        "in three axes": lazy[0].unflatten(0, 12, 8).slice(1, 2, 7),
        "turned": lazy[0].unflatten(0, 12, 8).permute(2, 0, 1),
        "a number": lazy[5],
        "nothing": lazy[0].slice(0, 4, 4),
        "mean": mean([lazy[0], lazy[0]]),
        "zeros": LazyTensor.zeros((100, 30), lazy[0].dtype),
    }
    expected = {
        "whole": whole,
        "by columns": whole,
        "by rows": torch.cat([whole[50:], whole[:50]]),
        "transposed": whole,
        "a column": whole[:, 3:4],
        "long rows": counted(3, 2500),
        "in three axes": whole.reshape(12, 8, 200)[:, 2:7],
        "turned": whole.reshape(12, 8, 200).permute(2, 0, 1),
        "a number": torch.tensor(7.0),
        "mean": whole,
        "zeros": torch.zeros(100, 30),
    }
    found = read(tensors, settings)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name] == tensor.contiguous().numpy().tobytes(), name


def test_many_small_tensors_share_the_pool(tmp_path: Path) -> None:
    tensors = [counted(3, start=number) for number in range(300)]
    lazy = {str(number): tensor for number, tensor in enumerate(stored(tmp_path / "a.pt", *tensors))}
    found = read(lazy)
    assert [found[name] for name in lazy] == [tensor.numpy().tobytes() for tensor in tensors]


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "a.pt", counted(64, 300))
    said: list[tuple[int, int]] = []
    for _ in read_in_order({"a": lazy}, TINY, SourceChecksums(), lambda done, total: said.append((done, total))):
        pass
    assert max(said) == (lazy.nbytes, lazy.nbytes)
    assert len(said) > 5


def test_a_record_that_is_not_what_its_file_says_is_refused(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "a.pt", counted(64, 300))
    start, _ = records(tmp_path / "a.pt")["data/0"]
    flip(tmp_path / "a.pt", start + 40000, 3)
    with pytest.raises(DamagedError, match="CRC-32"):
        read({"a": lazy})


def test_a_budget_below_the_floor_is_refused_with_the_number_that_works() -> None:
    with pytest.raises(MemoryBudgetError, match="reading tensors in order"):
        fit_in_order(ReadingOptions(max_ram="1M"))
    settings = fit_in_order(ReadingOptions(max_ram="32G"))
    assert (settings.engine.block, settings.engine.threads, settings.pool) == (16 << 20, 4, 64 << 20)
