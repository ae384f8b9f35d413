"""Lowering: the jobs write just what the expression says, and no tile outgrows the buffers of its block."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.containers.torch_save.zip_reader import open_torch_zip
from streamconv.core.dtypes import DTYPES
from streamconv.core.lazy import LazyTensor, concat, mean, share, total
from streamconv.execution.settings import EngineSettings
from streamconv.execution.tile_log import TileLog
from streamconv.io.output import OutputFileWriter
from streamconv.io.source import IO_MODES
from streamconv.moves.jobs import BlocksJob, Job, RowsJob, RunJob, Target
from streamconv.moves.low_rank import LowRankJob
from streamconv.moves.lower import lower
from streamconv.moves.tiles import Move, Tile, tile_nbytes
from tests.running import run_engine, tiles_of

HEADS, HEAD_DIM, HIDDEN = 4, 6, 40
ROWS = 3 * HEADS * HEAD_DIM


def labels(start: int, *shape: int) -> Any:
    """Whole numbers that differ everywhere."""
    return torch.arange(start, start + prod(shape), dtype=torch.float32).reshape(shape)


def made_shards() -> dict[str, list[Any]]:
    """Four shards of (72, 40) each, stored in all the ways in which torch stores tensors."""
    size = ROWS * HIDDEN
    whole = [labels(n * size, ROWS, HIDDEN) for n in range(4)]
    bloated = labels(4 * size, 4 * ROWS + 50, HIDDEN)
    wide = labels(8 * size, ROWS, 4 * HIDDEN + 8)
    numbers = torch.randn(4, ROWS, HIDDEN, generator=torch.Generator().manual_seed(1))
    return {
        "fp32": whole,
        "bf16": list(numbers.to(torch.bfloat16).clone().unbind()),
        "fp16": [row.to(torch.float16) for row in numbers],
        "random": [row.clone() for row in numbers],
        "int64": [tensor.long() for tensor in whole],
        "transposed": [tensor.t().contiguous().t() for tensor in whole],
        "bloated": [bloated[20 + n * ROWS : 20 + (n + 1) * ROWS] for n in range(4)],
        "columns": [wide[:, 4 + n * HIDDEN : 4 + (n + 1) * HIDDEN] for n in range(4)],
        "expanded": [tensor[:1].expand(ROWS, HIDDEN) for tensor in whole],
        "expanded columns": [tensor[:, :1].expand(ROWS, HIDDEN) for tensor in whole],
        "every second row": [labels(0, 2 * ROWS, HIDDEN)[::2], labels(9, 2 * ROWS, HIDDEN)[1::2]] * 2,
        "one column of many": [labels(n, ROWS, 70)[:, n : n + 1].expand(ROWS, HIDDEN) for n in range(4)],
        "large": [labels(n << 18, ROWS * 4, 1024) for n in range(2)],
    }


SHARDS = made_shards()


@pytest.fixture(scope="module")
def shards(disk: Path) -> dict[str, list[LazyTensor]]:
    path = disk / "shards.pt"
    torch.save(SHARDS, path)
    state = open_torch_zip(path).state
    return {name: list(tensors) for name, tensors in state.items()}


# -- what conversions do -----------------------------------------------------------------------------------------------

Many = list[LazyTensor]


def cut(whole: LazyTensor, dim: int, parts: int) -> Many:
    size = whole.shape[dim] // parts
    return [whole.slice(dim, n * size, (n + 1) * size).coalesced() for n in range(parts)]


def rows(tensors: Many, tp: int) -> Many:
    """Column-parallel layers are cut on axis 0."""
    return cut(concat(tensors, 0).coalesced(), 0, tp)


def columns(tensors: Many, tp: int) -> Many:
    """Row-parallel layers are cut on axis 1."""
    return cut(concat(tensors, 1).coalesced(), 1, tp)


def from_blocks(tensors: Many, tp: int) -> Many:
    """[Q; K; V] of each rank become rows interleaved by head."""
    heads = tensors[0].shape[0] // (3 * HEAD_DIM)
    parts = [
        concat(
            [
                t.slice(0, n * heads * HEAD_DIM, (n + 1) * heads * HEAD_DIM).unflatten(0, heads, HEAD_DIM)
                for t in tensors
            ],
            0,
        )
        for n in range(3)
    ]
    mine = len(tensors) * heads // tp
    return [
        concat([part.slice(0, r * mine, (r + 1) * mine) for part in parts], 1).coalesced().flatten(0).coalesced()
        for r in range(tp)
    ]


def to_blocks(tensors: Many, tp: int) -> Many:
    """Rows interleaved by head become [Q; K; V], pieces as they come."""
    fused = concat(tensors, 0)
    by_head = fused.unflatten(0, fused.shape[0] // (3 * HEAD_DIM), 3 * HEAD_DIM)
    parts = [by_head.slice(1, n * HEAD_DIM, (n + 1) * HEAD_DIM).flatten(0) for n in range(3)]
    return cut(concat(parts, 0), 0, tp)


def padded(tensors: Many, tp: int) -> Many:
    """True rows, then copies of the last one."""
    whole = concat(tensors, 0).coalesced()
    true, multiple = whole.shape[0] - 7, 16 * tp
    fill = -(-true // multiple) * multiple - true
    return cut(concat([whole.slice(0, 0, true), whole.repeat_row(true - 1, fill)], 0), 0, tp)


def averaged(tensors: Many, tp: int) -> Many:
    return [mean(tensors), *cut(mean(tensors), 0, tp)]


def averaged_beside_plain(tensors: Many, tp: int) -> Many:
    return cut(concat([mean(tensors), tensors[0]], 1), 0, tp)


def summed(tensors: Many, tp: int) -> Many:
    return cut(total(tensors), 0, tp)


def shared(tensors: Many, tp: int) -> Many:
    """Each rank its share of whole rows, of a sum, and of a matrix that is stored transposed."""
    tp = tp if tensors[0].dtype.is_floating else 1
    return [share(tensors[0], tp), share(total(tensors), tp), share(tensors[0].permute(1, 0), tp)]


def turned(tensors: Many, tp: int) -> Many:
    return [tensor.permute(1, 0) for tensor in rows(tensors, tp)]


def as_they_are(tensors: Many, tp: int) -> Many:
    return [*tensors, *tensors[:tp]]


def vectors(tensors: Many, tp: int) -> Many:
    """Biases: single rows, cut and joined."""
    return cut(concat([tensor.slice(0, 1, 2).flatten(0) for tensor in tensors], 0), 0, tp)


def beside_zeros(tensors: Many, tp: int) -> Many:
    """Zeros that are stored nowhere: by themselves, in rows below what is stored, and beside it."""
    first = tensors[0]
    nothing = LazyTensor.zeros(first.shape, first.dtype)
    below = concat([first, nothing, *tensors[1:]], 0)
    return [nothing, nothing.flatten(0), *cut(below, 1, tp), concat([nothing, mean(tensors)], 1)]


RECIPES: dict[str, Callable[[Many, int], Many]] = {
    recipe.__name__: recipe
    for recipe in (rows, columns, from_blocks, to_blocks, padded, averaged, averaged_beside_plain, summed, shared,
                   turned, as_they_are, vectors, beside_zeros)
}  # fmt: skip


@st.composite
def expressions(draw: st.DrawFn) -> Callable[[dict[str, Many]], Many]:
    """What some recipe makes of some shards, maybe cast, beside what another one makes."""
    plans = draw(
        st.lists(
            st.tuples(
                st.sampled_from([name for name in SHARDS if name != "large"]),
                st.sampled_from(sorted(RECIPES)),
                st.sampled_from((1, 2, 4)),
                st.sampled_from((1, 2, 4)),
                st.sampled_from((None, None, "bfloat16", "float32", "float64")),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def build(shards: dict[str, Many]) -> Many:
        made: Many = []
        for kind, recipe, source_tp, tp, dtype in plans:
            for tensor in RECIPES[recipe](shards[kind][:source_tp], tp):
                made.append(tensor if dtype is None else tensor.cast(DTYPES[dtype]))
        return made

    return build


# -- running them ------------------------------------------------------------------------------------------------------


def lay_out(tensors: Sequence[LazyTensor]) -> tuple[list[Target], int]:
    """Targets over two files, each at a multiple of 64 bytes."""
    ends = [0, 0]
    targets = []
    for number, tensor in enumerate(tensors):
        file = number % 2
        targets.append(Target(file, ends[file], tensor))
        ends[file] += -(-tensor.nbytes // 64) * 64
    return targets, max(ends)


def run_jobs(tensors: Sequence[LazyTensor], folder: Path, settings: EngineSettings) -> tuple[list[bytes], TileLog]:
    """The bytes that the engine writes for each tensor, and the log of it."""
    targets, nbytes = lay_out(tensors)
    jobs = lower(targets)
    settings = EngineSettings(
        max(settings.block, *(job.smallest_block for job in jobs), 0), settings.threads, settings.io
    )
    for number in range(2):
        (folder / f"{number}").unlink(missing_ok=True)
    writers = [OutputFileWriter(folder / f"{number}", nbytes, 1 << 20, settings.io) for number in range(2)]
    try:
        log = run_engine(jobs, writers, settings)
    finally:
        for writer in writers:
            writer.close()
    files = [(folder / f"{number}").read_bytes() for number in range(2)]
    return [files[t.file][t.offset : t.offset + t.tensor.nbytes] for t in targets], log


def assert_written(tensors: Sequence[LazyTensor], folder: Path, settings: EngineSettings) -> TileLog:
    """The engine writes what the tensors say, and knows its checksums."""
    written, log = run_jobs(tensors, folder, settings)
    for target, data in zip(lay_out(tensors)[0], written, strict=True):
        assert data == target.tensor.numpy().tobytes(), target.tensor
        assert log.targets.whole((target.file, target.offset), len(data)) == zlib.crc32(data)
    return log


@pytest.mark.slow
@given(build=expressions(), block=st.sampled_from((4096, 5000, 1 << 16)), threads=st.sampled_from((1, 2)),
       io=st.sampled_from(IO_MODES))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_any_expression_is_written_as_it_reads(
    shards: dict[str, Many], disk: Path, build: Any, block: int, threads: int, io: str
) -> None:
    folder = disk / "written"
    folder.mkdir(exist_ok=True)
    assert_written(build(shards), folder, EngineSettings(block, threads, io))


# -- tiles and buffers -------------------------------------------------------------------------------------------------


def assert_fits(tile: Tile, block: int) -> None:
    """All of a tile is inside one thread's buffers, and no more bytes are read than the engine promises."""
    source, target = tile_nbytes(block)
    for read in tile.reads:
        assert read.start >= 0
        assert read.start + read.nbytes <= read.storage.nbytes
        assert read.position + read.nbytes <= source
    for move in tile.moves:
        assert isinstance(move, Move)
        size = move.target_dtype.itemsize
        last = sum((n - 1) * s for n, s in zip(move.shape, move.strides, strict=True))
        assert move.position + last + size <= target
        for position, strides in move.sources:
            last = sum((n - 1) * s for n, s in zip(move.shape, strides, strict=True))
            assert position + last + move.source_dtype.itemsize <= max(r.position + r.nbytes for r in tile.reads)
    for write in tile.writes:
        assert write.position + write.nbytes <= (target if tile.moves else source)


@given(build=expressions(), extra=st.sampled_from((0, 1, 900, 1 << 14, 1 << 17)))
@settings(max_examples=50, deadline=None)
def test_each_tile_stays_within_the_buffers_of_its_block(shards: dict[str, Many], build: Any, extra: int) -> None:
    jobs = lower(lay_out(build(shards))[0])
    for job in jobs:
        block = job.smallest_block + extra
        written = 0
        for tile in tiles_of(job, block):
            assert_fits(tile, block)
            written += sum(write.nbytes for write in tile.writes)
        assert written == written_nbytes(job)


def written_nbytes(job: Job) -> int:
    if isinstance(job, RunJob):
        return len(job.sinks) * job.numel * job.target.itemsize
    assert not isinstance(job, LowRankJob)
    targets = (job.target,) if isinstance(job, BlocksJob) else job.targets
    return sum(target.tensor.nbytes for target in targets)


def test_rows_of_mixed_source_dtypes_stay_within_the_buffers(shards: dict[str, Many]) -> None:
    """The first rows are read as 8 bytes an element and the rest as 2: an average row says too little of them."""
    wide = shards["int64"][0]
    assert wide.dtype.itemsize == 8
    first = shards["every second row"][0].cast(DTYPES["bfloat16"])
    second = concat([shards["bf16"][n] for n in range(4)], 0)
    mixed = concat([first, second], 0)
    jobs = lower([Target(0, 0, mixed)])
    for job in jobs:
        for extra in (0, 1 << 16, 1 << 20):
            for tile in tiles_of(job, job.smallest_block + extra):
                assert_fits(tile, job.smallest_block + extra)


def test_many_small_pieces_stay_within_the_buffers(shards: dict[str, Many]) -> None:
    """A vector of single elements from 6000 places: each read is aligned, and alignment takes room too."""
    row = shards["large"][0].slice(0, 0, 18).flatten(0)
    vector = concat([row.slice(0, n, n + 1) for n in range(0, 18_000, 3)], 0)
    for job in lower([Target(0, 0, vector)]):
        for block in (job.smallest_block, 1 << 16):
            for tile in tiles_of(job, block):
                assert_fits(tile, block)


# -- which jobs --------------------------------------------------------------------------------------------------------


def test_a_stored_tensor_is_one_run(shards: dict[str, Many]) -> None:
    (job,) = lower([Target(0, 64, shards["bloated"][2])])
    assert isinstance(job, RunJob)
    assert job.sinks == ((0, 64, 0),)
    assert job.start == (20 + 2 * ROWS) * HIDDEN * 4
    assert job.numel == ROWS * HIDDEN


@pytest.mark.parametrize("shape", [(300_000,), (1, 300_000), (600, 500)])
def test_zeros_are_written_block_by_block_and_read_nothing(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = LazyTensor.zeros(shape, DTYPES["float32"])
    (job,) = lower([Target(0, 64, tensor)])
    assert isinstance(job, RowsJob)
    assert (job.read_nbytes, job.smallest_block) == (0, 4096)
    assert len(list(tiles_of(job, 1 << 16))) > 1
    log = assert_written([tensor], tmp_path, EngineSettings(1 << 16, 2, "pread"))
    assert (log.read_nbytes, log.write_nbytes) == (0, tensor.nbytes)


def test_leading_axes_of_size_1_do_not_keep_a_tensor_in_one_block(shards: dict[str, Many]) -> None:
    """A layer of Megatron-Core's ``torch_dist`` is a chunk of one layer of all."""
    first, second = shards["fp32"][:2]
    halves = concat([cut(first, 1, 2)[1], cut(second, 1, 2)[0]], 1)
    (plain,), (stacked,) = lower([Target(0, 0, halves)]), lower([Target(0, 0, halves.unflatten(0, 1, halves.shape[0]))])
    assert stacked == plain
    assert stacked.smallest_block < halves.nbytes


def test_a_tensor_that_goes_to_two_files_is_read_once(shards: dict[str, Many]) -> None:
    (job,) = lower([Target(0, 64, shards["fp32"][0]), Target(1, 128, shards["fp32"][0])])
    assert isinstance(job, RunJob)
    assert job.sinks == ((0, 64, 0), (1, 128, 0))


def test_long_runs_that_are_joined_on_axis_0_stay_runs(shards: dict[str, Many]) -> None:
    jobs = lower([Target(0, 0, concat(shards["large"], 0))])
    assert [type(job) for job in jobs] == [RunJob, RunJob]


def test_halves_of_rows_are_filled_together_from_one_reading(shards: dict[str, Many]) -> None:
    whole = shards["large"][0]
    targets = [Target(n, 0, half) for n, half in enumerate(cut(whole, 1, 2))]
    (job,) = lower(targets)
    assert isinstance(job, RowsJob)
    read = sum(read.nbytes for tile in tiles_of(job, 1 << 16) for read in tile.reads)
    assert read == whole.nbytes


def test_jobs_are_ordered_by_where_they_write(shards: dict[str, Many]) -> None:
    tensors = [*shards["fp32"], *columns(shards["columns"], 2), *turned(shards["fp32"], 2)]
    places = [job.place for job in lower(lay_out(tensors)[0])]
    assert places == sorted(places)


def test_an_empty_tensor_needs_no_job(shards: dict[str, Many]) -> None:
    assert lower([Target(0, 0, shards["fp32"][0].slice(0, 3, 3))]) == []


def test_scalars_are_written(tmp_path: Path) -> None:
    torch.save([torch.tensor(1.5), torch.tensor(2.5)], tmp_path / "a.pt")
    scalars = list(open_torch_zip(tmp_path / "a.pt").tensors().values())
    written, _ = run_jobs([*scalars, mean(scalars)], tmp_path, EngineSettings(4096, 1, "pread"))
    assert [torch.frombuffer(bytearray(data), dtype=torch.float32).item() for data in written] == [1.5, 2.5, 2.0]
