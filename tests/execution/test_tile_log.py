"""What is entered in any order and any cut is what is done, and the rest is exactly what remains."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.settings import EngineSettings
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.output import OutputFileWriter
from streamconv.moves.jobs import BlocksJob, Job, RowsJob, RunJob, Target
from streamconv.moves.lower import lower
from tests.running import run_engine
from tests.stored import counted, stored

pytestmark = pytest.mark.disk

KINDS = ("runs", "rows", "casts", "transposed")


def tensors_of(kind: str, path: Path) -> list[LazyTensor]:
    """Target tensors that are lowered to jobs of one kind, or of several."""
    if kind == "transposed":
        return stored(path, counted(140, 130).t(), counted(70, 3))
    shards = stored(path, *(counted(37, 24, start=1000 * n) for n in range(4)))
    if kind == "casts":
        shards = [shard.cast(DTYPES["bfloat16"]) for shard in shards]
    if kind == "runs":
        return [*shards, shards[0]]
    wide = concat(shards, 1)
    return [*shards[:1], *(wide.slice(1, low, low + 32).coalesced() for low in (0, 32, 64))]


class Work:
    """Jobs over real files, the file that they fill, and what it must hold."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.tensors = tensors_of(kind, folder / "source.pt")
        self.offsets, position = [], 100
        for tensor in self.tensors:
            self.offsets.append(position)
            position += tensor.nbytes + 37
        self.nbytes, self.path = position, folder / "out"
        places = zip(self.offsets, self.tensors, strict=True)
        self.jobs = lower(Target(0, offset, tensor) for offset, tensor in places)
        self.smallest = max(job.smallest_block for job in self.jobs)

    def ranges(self, block: int) -> list[tuple[int, int, int]]:
        return [(n, *cut) for n, job in enumerate(self.jobs) for cut in job.cut(0, job.length, max(block, 4096))]

    def writer(self, *, resume: bool = False) -> OutputFileWriter:
        if not resume:
            self.path.unlink(missing_ok=True)
        return OutputFileWriter(self.path, self.nbytes, 1 << 20, resume=resume)

    def do(self, ranges: Sequence[tuple[int, int, int]], block: int) -> list[TileDone]:
        """Write these ranges, and what of it a journal would note."""
        done = []
        settings = EngineSettings(max(block, self.smallest), 1, "pread")
        with closing(self.writer()) as writer, closing(Workers(settings)) as workers:
            for job, first, last in ranges:
                tile = self.jobs[job].tile(first, last)
                done.append(TileDone(job, first, last, *workers.each[0].run(tile, [writer])))
        return [TileDone(*entry) for entry in json.loads(json.dumps(done))]

    def go_on(self, log: TileLog, block: int, count: int) -> None:
        settings = EngineSettings(max(block, self.smallest), count, "direct")
        with closing(self.writer(resume=True)) as writer, closing(Workers(settings)) as workers:
            run_tiles(log, [writer], workers, lambda _: None)

    def assert_whole(self, log: TileLog) -> None:
        assert list(log.remaining()) == []
        written = self.path.read_bytes()
        for offset, tensor in zip(self.offsets, self.tensors, strict=True):
            expected = tensor.numpy().tobytes()
            assert written[offset : offset + tensor.nbytes] == expected
            assert log.targets.whole((0, offset), tensor.nbytes) == zlib.crc32(expected)
        assert log.write_nbytes == sum(tensor.nbytes for tensor in self.tensors)


def complement(jobs: Sequence[Job], done: Sequence[tuple[int, int, int]]) -> set[tuple[int, int]]:
    """(job, place) of everything that is in none of the ranges."""
    every = {(number, place) for number, job in enumerate(jobs) for place in range(job.length)}
    return every - {(job, place) for job, first, last in done for place in range(first, last)}


def test_the_works_have_jobs_of_every_kind(tmp_path: Path) -> None:
    kinds = {type(job) for kind in KINDS for job in Work(kind, tmp_path).jobs}
    assert kinds == {RunJob, RowsJob, BlocksJob}
    casts = [job for job in Work("casts", tmp_path).jobs if isinstance(job, RunJob) and job.source != job.target]
    assert casts


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(KINDS), seed=st.integers(0, 1 << 32))
def test_a_run_goes_on_with_just_what_is_left_whatever_the_cut(
    data: st.DataObject, kind: str, seed: int, tmp_path: Path
) -> None:
    work, rng = Work(kind, tmp_path), random.Random(seed)
    before, after = (data.draw(st.sampled_from([4096, 5000, 9000, 1 << 16])) for _ in range(2))
    ranges = work.ranges(before)
    rng.shuffle(ranges)
    done = work.do(ranges[: data.draw(st.integers(0, len(ranges)))], before)
    rng.shuffle(done)
    log = TileLog(work.jobs)
    for tile in done:
        log.enter(tile)
    left = list(log.remaining())
    assert all(first < last for _, first, last in left)
    places = [(job, place) for job, first, last in left for place in range(first, last)]
    assert len(places) == len(set(places))
    assert set(places) == complement(work.jobs, [tile[:3] for tile in done])
    assert log.write_nbytes == sum(
        write.nbytes for tile in done for write in work.jobs[tile.job].tile(tile.first, tile.last).writes
    )
    work.go_on(log, after, data.draw(st.integers(1, 2)))
    work.assert_whole(log)
    whole = run_engine(work.jobs, [work.writer()], EngineSettings(max(4096, work.smallest), 1, "pread"))
    assert whole.sources.verdict() == log.sources.verdict()
    assert whole.sources.verdict().in_part == whole.sources.verdict().without_crc == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ends_after_every_tile_and_goes_on_with_another_block_each_time(kind: str, tmp_path: Path) -> None:
    work, rng = Work(kind, tmp_path), random.Random(kind)
    noted: list[TileDone] = []
    work.writer().close()
    while True:
        log = TileLog(work.jobs)
        for tile in rng.sample(noted, len(noted)):
            log.enter(tile)
        block = max(work.smallest, rng.choice([4096, 8192, 20_000]))
        left = [(n, *cut) for n, first, last in log.remaining() for cut in work.jobs[n].cut(first, last, block)]
        if not left:
            break
        settings = EngineSettings(block, 1, "pread")
        with closing(work.writer(resume=True)) as writer, closing(Workers(settings)) as workers:
            for job, first, last in rng.sample(left, min(3, len(left))):
                tile_done = workers.each[0].run(work.jobs[job].tile(first, last), [writer])
                noted.append(TileDone(job, first, last, *tile_done))
    work.assert_whole(log)


def test_nothing_entered_leaves_everything_and_everything_leaves_nothing(tmp_path: Path) -> None:
    work = Work("rows", tmp_path)
    log = TileLog(work.jobs)
    assert list(log.remaining()) == [(number, 0, job.length) for number, job in enumerate(work.jobs)]
    for tile in work.do(work.ranges(4096), 4096):
        log.enter(tile)
    work.assert_whole(log)


def test_remaining_is_what_was_left_when_it_was_asked(tmp_path: Path) -> None:
    work = Work("runs", tmp_path)
    log = TileLog(work.jobs)
    left = log.remaining()
    first = next(left)
    for tile in work.do(work.ranges(4096), 4096):
        log.enter(tile)
    assert [first, *left] == [(number, 0, job.length) for number, job in enumerate(work.jobs)]
    assert list(log.remaining()) == []


# -- what does not fit -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["runs", "rows", "casts"]))
def test_a_range_that_is_done_in_part_or_not_there_is_refused_and_changes_nothing(
    data: st.DataObject, kind: str, tmp_path: Path
) -> None:
    work = Work(kind, tmp_path)
    tiles = work.do(work.ranges(4096), 4096)
    known = data.draw(st.sampled_from(tiles))
    length = work.jobs[known.job].length
    log = TileLog(work.jobs)
    log.enter(known)
    left = list(log.remaining())
    first, last = data.draw(st.integers(-3, length + 3)), data.draw(st.integers(-3, length + 3))
    valid = 0 <= first < last <= length and not (first < known.last and known.first < last)
    if valid:
        return
    with pytest.raises(ValueError, match=f"job {known.job} has no range {first} to {last}"):
        log.enter(known._replace(first=first, last=last))
    assert list(log.remaining()) == left


@pytest.mark.parametrize("number", [-1, -2, 4, 1 << 70])
def test_a_job_that_is_not_there_is_refused(number: int, tmp_path: Path) -> None:
    work = Work("runs", tmp_path)
    assert len(work.jobs) == 4
    with pytest.raises(ValueError, match=f"there is no job {number}"):
        TileLog(work.jobs).enter(TileDone(number, 0, 1, (0,), (0,)))


@pytest.mark.parametrize("kind", ["runs", "rows"])
def test_another_number_of_checksums_is_refused(kind: str, tmp_path: Path) -> None:
    work = Work(kind, tmp_path)
    tile = work.do(work.ranges(4096)[:1], 4096)[0]
    for wrong in (
        tile._replace(reads=()),
        tile._replace(writes=()),
        tile._replace(reads=(*tile.reads, 0)),
        tile._replace(writes=(*tile.writes, 0)),
    ):
        log = TileLog(work.jobs)
        with pytest.raises(ValueError, match="has other reads or writes"):
            log.enter(wrong)
        assert list(log.remaining()) == list(TileLog(work.jobs).remaining())


def test_a_band_of_a_transposed_matrix_ends_where_it_ends(tmp_path: Path) -> None:
    """A range over two bands is no tile, so a journal cannot have noted it."""
    (lazy,) = stored(tmp_path / "t.pt", counted(40, 2000).t())
    (job,) = lower([Target(0, 0, lazy)])
    assert isinstance(job, BlocksJob)
    assert job.length == 2 * 40
    for first, last in ((0, 80), (39, 41), (30, 80)):
        with pytest.raises(ValueError, match=f"{first} to {last}"):
            TileLog([job]).enter(TileDone(0, first, last, (0,) * 40, (0,) * 1024))


def test_a_source_that_is_not_what_was_noted_is_found_when_its_last_byte_is_entered(tmp_path: Path) -> None:
    (lazy,) = stored(tmp_path / "t.pt", torch.arange(3000, dtype=torch.float32))
    jobs = lower([Target(0, 0, lazy)])
    tiles = [TileDone(0, first, first + 1000, (first,), (first,)) for first in (0, 1000, 2000)]
    log = TileLog(jobs)
    for tile in tiles[:2]:
        log.enter(tile)
    with pytest.raises(DamagedError, match="its CRC-32"):
        log.enter(tiles[2])
