"""What the engine writes is what the lazy tensors say, in every mode, and what it finds broken it says."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, DifferenceError, StorageError
from streamconv.core.lazy import LazyTensor, concat, mean
from streamconv.execution.settings import EngineSettings
from streamconv.execution.tile_log import TileLog
from streamconv.io.checksums import RecordCounts
from streamconv.io.output import OutputFileWriter
from streamconv.io.source import IO_MODES
from streamconv.moves.jobs import RowsJob, RunJob, Target
from streamconv.moves.lower import lower
from streamconv.moves.tiles import tile_nbytes
from tests.running import run_engine, tiles_of
from tests.stored import counted, stored

pytestmark = pytest.mark.disk

MODES = [(io, count) for io in IO_MODES for count in (1, 2)]


def write(tensors: Sequence[LazyTensor], path: Path, block: int = 4096, io: str = "direct", count: int = 2) -> TileLog:
    """Run the engine over ``tensors``, one after the other in one file."""
    offsets = np.cumsum([0, *(tensor.nbytes for tensor in tensors)])
    jobs = lower(Target(0, int(offset), tensor) for offset, tensor in zip(offsets, tensors, strict=False))
    path.unlink(missing_ok=True)
    writer = OutputFileWriter(path, int(offsets[-1]), window=8192, io=io)
    block = max(block, *(job.smallest_block for job in jobs))
    done: list[int] = []
    log = run_engine(jobs, [writer], EngineSettings(block, count, io), done)
    writer.finish()
    assert sum(done) == log.write_nbytes == offsets[-1]
    return log


def check(tensors: Sequence[LazyTensor], folder: Path, **options: int | str) -> None:
    log = write(tensors, folder / "out", **options)  # type: ignore[arg-type]
    written = (folder / "out").read_bytes()
    position = 0
    for tensor in tensors:
        expected = tensor.numpy().tobytes()
        assert written[position : position + tensor.nbytes] == expected
        if tensor.nbytes:
            assert log.targets.whole((0, position), tensor.nbytes) == zlib.crc32(expected)
        position += tensor.nbytes


def reshard(shards: Sequence[LazyTensor], dim: int, tp: int) -> list[LazyTensor]:
    whole = concat(shards, dim)
    size = whole.shape[dim] // tp
    return [whole.slice(dim, rank * size, (rank + 1) * size).coalesced() for rank in range(tp)]


@pytest.mark.parametrize(("io", "count"), MODES)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (4, 4), (1, 4), (4, 1), (2, 3), (6, 4)])
def test_resharding_writes_every_element_in_its_place(
    io: str, count: int, dim: int, before: int, after: int, tmp_path: Path
) -> None:
    whole = counted(240, 96)
    shards = stored(tmp_path / "t.pt", *(part.contiguous() for part in whole.chunk(before, dim)))
    targets = reshard(shards, dim, after)
    check(targets, tmp_path, io=io, count=count)
    merged = np.frombuffer((tmp_path / "out").read_bytes(), np.float32)
    parts = np.split(merged, after)
    real = np.concatenate([part.reshape(target.shape) for part, target in zip(parts, targets, strict=True)], dim)
    assert np.array_equal(real, whole.numpy())


@pytest.mark.parametrize("block", [4096, 5000, 65536, 1 << 20])
def test_any_block_size_gives_the_same_bytes(block: int, tmp_path: Path) -> None:
    shards = stored(tmp_path / "t.pt", *(counted(301, 70, start=30000 * n) for n in range(3)))
    check([*reshard(shards, 1, 1), *reshard(shards, 0, 7), *shards], tmp_path, block=block)


@pytest.mark.parametrize(
    ("before", "after"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")]
)
def test_casts_are_made_on_runs_and_on_rows(before: str, after: str, tmp_path: Path) -> None:
    parts = [torch.randn(60, 50).to(getattr(torch, before)) for _ in range(2)]
    shards = [tensor.cast(DTYPES[after]) for tensor in stored(tmp_path / "t.pt", *parts)]
    check([*shards, *reshard(shards, 1, 1), *reshard(shards, 1, 5)], tmp_path)


def test_fills_means_views_and_transposes(tmp_path: Path) -> None:
    base = counted(100, 40)
    views = [base[10:60, 5:25], base.t(), base[7], base[:1].expand(30, 40), base[0, 0], base[3:3]]
    a, b = counted(50, 8), counted(50, 8, start=7)
    *lazy, first, second = stored(tmp_path / "t.pt", *views, a, b)
    padded = concat([first.slice(0, 0, 45), first.repeat_row(44, 11)], 0)
    check([*lazy, padded, mean([first, second]), mean([first, second]).slice(0, 10, 20)], tmp_path)


@pytest.mark.slow
def test_a_large_transposed_tensor_is_read_run_by_run(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", counted(500, 300).t())
    check([lazy], tmp_path)


def test_query_blocks_become_interleaved_rows(tmp_path: Path) -> None:
    (blocks,) = stored(tmp_path / "t.pt", counted(3 * 16 * 4, 20))
    rows = blocks.unflatten(0, 3, 64).unflatten(1, 16, 4).permute(1, 0, 2, 3).flatten(0).flatten(0)
    check([rows.coalesced()], tmp_path)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_expressions(data: st.DataObject, tmp_path: Path) -> None:
    rows, columns, tp = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60)), data.draw(st.integers(1, 4))
    dim = data.draw(st.integers(0, 1))
    shards = stored(tmp_path / "t.pt", *(counted(rows, columns, start=4000 * n) for n in range(tp)))
    whole = concat(shards, dim)
    size = whole.shape[dim]
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=4)))
    parts = [whole.slice(dim, low, high) for low, high in zip([0, *cuts], [*cuts, size], strict=True)]
    if data.draw(st.booleans()):
        parts = [part.permute(1, 0) for part in parts]
    check(parts, tmp_path, io=data.draw(st.sampled_from(["pread", "direct"])), count=data.draw(st.integers(1, 2)))


def test_whole_tensors_are_single_runs_and_a_copy_shares_the_read(tmp_path: Path) -> None:
    shards = stored(tmp_path / "t.pt", *(counted(50, 40, start=5000 * n) for n in range(4)))
    targets = [Target(n, 64, tensor) for n, tensor in enumerate((*shards, shards[0]))]
    jobs = lower(targets)
    assert [type(job) for job in jobs] == [RunJob] * 4
    assert isinstance(jobs[0], RunJob)
    assert jobs[0].sinks == ((0, 64, 0), (4, 64, 0))


def test_a_split_on_columns_reads_each_source_row_once(tmp_path: Path) -> None:
    (whole,) = stored(tmp_path / "t.pt", counted(100, 64))
    jobs = lower(Target(n, 0, part) for n, part in enumerate(reshard([whole], 1, 4)))
    (job,) = jobs
    assert isinstance(job, RowsJob)
    tiles = list(tiles_of(job, 4096))
    assert sum(read.nbytes for tile in tiles for read in tile.reads) == whole.nbytes
    assert all(len(tile.reads) == 1 for tile in tiles)


def test_tensors_of_a_bloated_storage_are_not_tied_to_each_other(tmp_path: Path) -> None:
    base = counted(400, 32)
    layers = stored(tmp_path / "t.pt", *(base[n * 100 : (n + 1) * 100] for n in range(4)))
    halves = [half for layer in layers for half in reshard([layer], 1, 2)]
    jobs = lower(Target(n, 0, half) for n, half in enumerate(halves))
    assert [len(job.targets) for job in jobs if isinstance(job, RowsJob)] == [2] * 4


@pytest.mark.parametrize("block", [4096, 16384])
def test_tiles_stay_inside_the_buffers(block: int, tmp_path: Path) -> None:
    shards = stored(tmp_path / "t.pt", *(counted(333, 31, start=20000 * n) for n in range(4)))
    for targets in (reshard(shards, 1, 1), reshard(shards, 0, 9), reshard(reshard(shards, 1, 1), 1, 2)):
        for job in lower(Target(n, 0, tensor) for n, tensor in enumerate(targets)):
            for tile in tiles_of(job, block):
                assert max(read.position + read.nbytes for read in tile.reads) <= tile_nbytes(block)[0]
                assert max(part.position + part.nbytes for part in tile.writes) <= tile_nbytes(block)[1]


@pytest.mark.parametrize(("io", "count"), MODES)
def test_a_flipped_byte_names_record_and_file(io: str, count: int, tmp_path: Path) -> None:
    tensors = stored(tmp_path / "t.pt", counted(100, 100), counted(50))
    storage = tensors[0].pieces[0].views[0].storage
    data = bytearray((tmp_path / "t.pt").read_bytes())
    data[storage.offset + 777] ^= 1
    (tmp_path / "t.pt").write_bytes(data)
    with pytest.raises(DamagedError, match="data/0: its CRC-32") as caught:
        write(tensors, tmp_path / "out", io=io, count=count)
    assert "t.pt" in str(caught.value)


@pytest.mark.parametrize(("io", "count"), MODES)
def test_a_file_cut_off_after_planning_is_no_crash(io: str, count: int, tmp_path: Path) -> None:
    tensors = stored(tmp_path / "t.pt", counted(300, 100), counted(50))
    data = (tmp_path / "t.pt").read_bytes()
    (tmp_path / "t.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError, match="all were when the file was opened"):
        write(tensors, tmp_path / "out", io=io, count=count)


def test_a_record_read_in_part_is_counted_as_unchecked(tmp_path: Path) -> None:
    whole, small = stored(tmp_path / "t.pt", counted(100, 10), counted(50))
    log = write([whole.slice(0, 10, 90), small], tmp_path / "out")
    assert log.sources.verdict() == RecordCounts(checked=1, in_part=1, without_crc=0)


def test_an_overflow_is_refused_and_says_where(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", torch.tensor([1.0, 70000.0, -80000.0]))
    with pytest.raises(DifferenceError, match="2 finite values exceed 65504") as caught:
        write([lazy.cast(DTYPES["float16"])], tmp_path / "out")
    assert "t.pt: data/0" in str(caught.value)
