"""Every engine keeps the same promises; so does one that is added by a single file."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch

from streamconv import convert, stream
from streamconv.core import pool
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, DifferenceError, DiskSpaceError, StorageError, UsageError
from streamconv.core.lazy import LazyTensor, concat, mean
from streamconv.execution import assignment, engines
from streamconv.execution.registry import find_engine, known_engines
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.settings import DEFAULT_ENGINE, EngineSettings
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.direct import Buffer
from streamconv.io.output import OutputFileWriter
from streamconv.moves.jobs import BlocksJob, Job, RowsJob, RunJob, Target
from streamconv.moves.lower import lower
from streamconv.moves.tiles import buffer_nbytes
from tests.damage import flip
from tests.hf_models import make
from tests.places import LABELLED, REAL
from tests.stored import counted, stored

ADDED = "backwards"
ONE_FILE = f'''
class _Backwards:
    name = "{ADDED}"
    most_threads = 2

    def run(self, assignment):
        for turn, part in enumerate(reversed(list(assignment.ranges()))):
            assignment.do(assignment.workers[turn % len(assignment.workers)], part)
            assignment.commit_if_due()


ENGINE = _Backwards()
'''
NAMES = [*(engine.name for engine in known_engines()), ADDED]
BLOCK = 4096


@pytest.fixture(autouse=True)
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more module among the engines; nothing else says that it is there."""
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / f"{ADDED}.py").write_text(ONE_FILE)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(folder)])
    known_engines.cache_clear()
    yield
    sys.modules.pop(f"{engines.__name__}.{ADDED}", None)
    known_engines.cache_clear()


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT raises, also where the shell that started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def commits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_TICK_SECONDS", 0.001)
    monkeypatch.setattr(assignment, "_FIRST_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(assignment, "_COMMIT_SECONDS", 0.0)


class Watched(OutputFileWriter):
    """An output file that notes when it is written and made durable. The first sync may fail, as Linux has it: once."""

    def __init__(self, path: Path, nbytes: int, number: int, events: list[tuple[str, int]], *, resume: bool) -> None:
        super().__init__(path, nbytes, 1 << 20, resume=resume)
        self.number, self.events = number, events
        self.refusals: list[str] = []

    def write(self, offset: int, buffer: Buffer | bytes, position: int, nbytes: int) -> None:
        super().write(offset, buffer, position, nbytes)
        time.sleep(0.02 if self.refusals else 0)
        self.events.append(("write", self.number))

    def commit(self) -> None:
        if self.refusals:
            raise DiskSpaceError(self.refusals.pop(), where=self.path)
        super().commit()
        self.events.append(("commit", self.number))


class Work:
    """Target tensors over real files, each in an output file of its own, and what an engine did of them."""

    def __init__(self, folder: Path, tensors: Sequence[LazyTensor]) -> None:
        self.folder, self.tensors = folder, tensors
        self.jobs: Sequence[Job] = lower(Target(number, 5, tensor) for number, tensor in enumerate(tensors))
        self.block = max(BLOCK, *(job.smallest_block for job in self.jobs))
        self.events: list[tuple[str, int]] = []
        self.noted: list[TileDone] = []
        self.done: list[int] = []

    @property
    def tiles(self) -> int:
        return sum(len(list(job.cut(0, job.length, self.block))) for job in self.jobs)

    def writer(self, number: int, *, resume: bool) -> Watched:
        tensor = self.tensors[number]
        return Watched(self.folder / f"out-{number}", tensor.nbytes + 5, number, self.events, resume=resume)

    def run(
        self, engine: str, *, stop_after: int | None = None, slow_from: int | None = None, refuses: bool = False
    ) -> TileLog:
        """Begin, or go on behind what was noted.

        With ``stop_after`` Ctrl-C is pressed after so many tiles; with ``slow_from`` those after so many take longer;
        with ``refuses`` the first sync of a file fails, while others are being written.
        """
        log = TileLog(self.jobs)
        for tile in self.noted:
            log.enter(tile)
        resume = (self.folder / "out-0").exists()
        settings = EngineSettings(self.block, find_engine(engine).most_threads or 3, "direct", engine)

        def progress(nbytes: int) -> None:
            self.done.append(nbytes)
            if len(self.done) == stop_after:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if stop_after is not None and len(self.done) >= stop_after:
                time.sleep(0.15)
            elif slow_from is not None and len(self.done) >= slow_from:
                time.sleep(0.01)

        def note(tiles: Sequence[TileDone]) -> None:
            self.events.append(("note", len(tiles)))
            self.noted += tiles

        writers = [self.writer(number, resume=resume) for number in range(len(self.tensors))]
        refusals = ["cannot sync the file"] if refuses else []
        try:
            for writer in writers:
                writer.refusals = refusals
            with closing(Workers(settings)) as workers:
                run_tiles(log, writers, workers, progress, note)
        finally:
            for writer in writers:
                writer.close()
        return log

    def assert_whole(self, log: TileLog) -> None:
        assert list(log.remaining()) == []
        for number, tensor in enumerate(self.tensors):
            expected = tensor.numpy().tobytes()
            assert (self.folder / f"out-{number}").read_bytes()[5:] == expected
            assert log.targets.whole((number, 5), len(expected)) == (zlib.crc32(expected) if expected else None)

    def assert_noted_is_there(self) -> None:
        """What is noted lies in the files, each element once."""
        log = TileLog(self.jobs)
        for tile in self.noted:
            log.enter(tile)  # refuses what was noted before
            for write, crc in zip(self.jobs[tile.job].tile(tile.first, tile.last).writes, tile.writes, strict=True):
                first = write.record + write.start
                data = (self.folder / f"out-{write.file}").read_bytes()[first : first + write.nbytes]
                assert zlib.crc32(data) == crc


def many(folder: Path, count: int = 9) -> Work:
    """Matrices that are copied, each from a record of its own."""
    return Work(folder, stored(folder / "many.pt", *(counted(64, 256, start=n << 14) for n in range(count))))


def tensors_of(kind: str, path: Path) -> list[LazyTensor]:
    shards = stored(path, *(counted(96, 100, start=10_000 * n) for n in range(3)))
    if kind == "copy":
        return [*shards, shards[0]]
    if kind == "transpose":
        (matrix,) = stored(path, counted(300, 200).t())
        return [matrix]
    if kind == "rows split":
        return [concat(shards, 0).slice(0, low, low + 72).coalesced() for low in (0, 72, 144, 216)]
    if kind == "columns split":
        return [concat(shards, 1).slice(1, low, low + 60).coalesced() for low in (0, 60, 120, 180, 240)]
    if kind == "cast":
        return [shard.cast(DTYPES["bfloat16"]) for shard in shards]
    if kind == "mean of replicas":
        return [mean(shards)]
    padded = concat([shards[0].slice(0, 0, 90), shards[0].repeat_row(89, 38)], 0)
    return [padded.slice(0, 0, 64), padded.slice(0, 64, 128)]


KINDS = ("copy", "transpose", "rows split", "columns split", "cast", "mean of replicas", "padding")


def test_the_kinds_are_lowered_to_every_kind_of_job(tmp_path: Path) -> None:
    jobs = [job for kind in KINDS for job in Work(tmp_path, tensors_of(kind, tmp_path / f"{kind}.pt")).jobs]
    assert {type(job) for job in jobs} == {RunJob, RowsJob, BlocksJob}


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_noted_and_said_is_all_of_it_once(engine: str, kind: str, tmp_path: Path) -> None:
    work = Work(tmp_path, tensors_of(kind, tmp_path / "source.pt"))
    assert work.tiles >= 8
    log = work.run(engine)
    work.assert_whole(log)
    work.assert_noted_is_there()
    assert len(work.done) == len(work.noted) == work.tiles
    assert sum(work.done) == log.write_nbytes == sum(tensor.nbytes for tensor in work.tensors)
    assert log.sources.verdict().without_crc == 0


@pytest.mark.parametrize(
    ("number", "choices"),
    [
        (1, {"to": "megatron-legacy", "tp": 4, "pp": 1}),
        (1, {"to": "huggingface"}),
        (2, {"to": "megatron-legacy", "tp": 1, "dtype": "fp32", "replicated": "mean"}),
        (3, {"to": "megatron-core", "tp": 2, "pp": 4}),
    ],
    ids=str,
)
def test_a_conversion_is_the_same_with_every_engine(number: int, choices: dict[str, object], tmp_path: Path) -> None:
    results = []
    for name in NAMES:
        report = convert(REAL[number].folder, tmp_path / name, max_ram="1G", engine=name, **choices)  # type: ignore[arg-type]
        assert report.fit.engine == name
        assert report.fit.threads <= (find_engine(name).most_threads or 4)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        results.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert len(results[0]) > 2
    assert all(result == results[0] for result in results)


def test_a_transposed_model_is_the_same_with_every_engine(tmp_path: Path) -> None:
    make("gpt", tmp_path / "hf")
    for name in NAMES:
        convert(tmp_path / "hf", tmp_path / name, to="megatron-legacy", tp=2, pp=2, max_ram="1G", engine=name)
    first, *others = ([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.pt"))] for name in NAMES)
    assert len(set(first)) == 4
    assert all(other == first for other in others)


def test_streamed_tensors_are_the_same_with_every_engine() -> None:
    def streamed(name: str) -> list[tuple[object, str, bytes]]:
        found = stream(LABELLED[4].folder, framework="np", to="megatron-legacy", tp=1, max_ram="1G", engine=name)
        return [(item.rank, item.name, item.tensor.tobytes()) for item in found]

    first, *others = (streamed(name) for name in NAMES)
    assert len(first) > 10
    assert all(other == first for other in others)


# -- commits -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("commits_at_once")
def test_a_tile_is_noted_only_after_the_files_that_it_was_written_to_are_durable(engine: str, tmp_path: Path) -> None:
    work = Work(tmp_path, tensors_of("columns split", tmp_path / "source.pt"))
    work.run(engine, slow_from=work.tiles // 2)
    notes = [place for place, (what, _) in enumerate(work.events) if what == "note"]
    assert len(notes) >= 2  # in between, and at the end
    before = 0
    for place in notes:
        synced = {number for what, number in work.events[before:place] if what == "commit"}
        assert synced
        before = place
    written = {number: place for place, (what, number) in enumerate(work.events) if what == "write"}
    durable = {number: place for place, (what, number) in enumerate(work.events) if what == "commit"}
    assert all(written[number] < durable[number] < notes[-1] for number in written)


@pytest.mark.usefixtures("commits_at_once")
def test_a_commit_that_fails_ends_the_run_and_is_not_tried_again(engine: str, tmp_path: Path) -> None:
    work = many(tmp_path)
    with pytest.raises(DiskSpaceError, match="cannot sync"):
        work.run(engine, refuses=True)
    assert work.noted == []
    assert len(work.done) < work.tiles


# -- failures and interrupts -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_damaged_record_ends_the_run_and_is_never_noted_whole(engine: str, tmp_path: Path) -> None:
    work = many(tmp_path)
    storage = work.tensors[4].pieces[0].views[0].storage
    flip(storage.path, storage.offset + 4000, 3)
    with pytest.raises(DamagedError, match="data/4: its CRC-32"):
        work.run(engine, slow_from=0)  # so that no worker falls behind by many tiles
    noted = len(work.noted)
    work.assert_noted_is_there()
    # In either order of the tiles four records come behind; what the other workers had begun may be noted too.
    assert noted < 5 * work.tiles / 9 + 6
    damaged = [number for number, job in enumerate(work.jobs) if isinstance(job, RunJob) and job.storage == storage]
    assert sum(tile.last - tile.first for tile in work.noted if tile.job in damaged) < work.jobs[damaged[0]].length
    time.sleep(0.05)
    assert len(work.noted) == noted


@pytest.mark.slow
def test_damage_that_a_refused_commit_follows_is_what_is_raised(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "_FIRST_COMMIT_SECONDS", 3600.0)
    work = many(tmp_path, 3)
    storage = work.tensors[1].pieces[0].views[0].storage
    flip(storage.path, storage.offset + 4000, 3)
    with pytest.raises(DamagedError, match="data/1: its CRC-32") as caught:
        work.run(engine, refuses=True)
    assert isinstance(caught.value.__cause__, DiskSpaceError)
    assert work.noted == []


def test_a_file_that_was_cut_off_and_a_value_that_does_not_fit_are_named(engine: str, tmp_path: Path) -> None:
    work = many(tmp_path)
    with (tmp_path / "many.pt").open("r+b") as file:
        file.truncate(200_000)
    with pytest.raises(StorageError, match="all were when the file was opened"):
        work.run(engine)
    (tmp_path / "other").mkdir()
    (large,) = stored(tmp_path / "large.pt", torch.tensor([1.0, 70000.0]))
    with pytest.raises(DifferenceError, match="1 finite value"):
        Work(tmp_path / "other", [large.cast(DTYPES["float16"])]).run(engine)


def test_an_interrupt_stops_the_run_and_what_was_done_is_noted(engine: str, tmp_path: Path) -> None:
    work = many(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work.run(engine, stop_after=7)
    done, written = len(work.done), len(work.events)
    # The calling thread sees the signal within a quarter of a second; each worker does two tiles in that time.
    assert 7 <= done <= 7 + 3 * 3
    assert len(work.noted) == done
    work.assert_noted_is_there()
    time.sleep(0.1)
    assert (len(work.done), len(work.events)) == (done, written)


@pytest.mark.slow
@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("kind", ["columns split", "transpose", "padding"])
def test_a_run_that_one_engine_began_is_ended_by_another(engine: str, second: str, kind: str, tmp_path: Path) -> None:
    work = Work(tmp_path, tensors_of(kind, tmp_path / "source.pt"))
    with pytest.raises(KeyboardInterrupt):
        work.run(engine, stop_after=2)
    assert 0 < len(work.noted) < work.tiles
    work.assert_whole(work.run(second))
    work.assert_noted_is_there()


# -- memory ------------------------------------------------------------------------------------------------------------


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@pytest.mark.slow
def test_a_run_takes_the_workers_buffers_and_little_more(engine: str, tmp_path: Path) -> None:
    (whole,) = stored(tmp_path / "t.pt", counted(4096, 4096))
    settings = EngineSettings(256 << 10, find_engine(engine).most_threads or 2, "pread", engine)
    jobs = lower(Target(0, n * (whole.nbytes // 4), whole.slice(1, n * 1024, (n + 1) * 1024)) for n in range(4))
    for path in (tmp_path / "warm", tmp_path / "out"):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS:")
        with (
            closing(OutputFileWriter(path, whole.nbytes, 1 << 20, "pread")) as writer,
            closing(Workers(settings)) as workers,
        ):
            run_tiles(TileLog(jobs), [writer], workers, lambda _: None)
    buffers = buffer_nbytes(settings.block, settings.threads)
    assert whole.nbytes >= 64 << 20
    assert resident("VmHWM:") - before <= buffers + (4 << 20)


# -- the registry ------------------------------------------------------------------------------------------------------


def test_engines_are_found_by_their_modules() -> None:
    assert sorted(engine.name for engine in known_engines()) == sorted(NAMES)
    assert len(NAMES) == len(set(NAMES))
    assert DEFAULT_ENGINE in NAMES
    assert all(find_engine(name).name == name for name in NAMES)


def test_an_engine_that_is_none_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine='gpu': no such choice") as caught:
        convert(REAL[1].folder, tmp_path / "out", engine="gpu")
    assert all(name in str(caught.value.remedy) for name in NAMES)
    assert not (tmp_path / "out").exists()


def test_more_threads_than_an_engine_has_a_use_for_are_refused(tmp_path: Path) -> None:
    for name, jobs in (("serial", 2), (ADDED, 3)):
        with pytest.raises(UsageError, match=f"jobs={jobs}: the engine {name} has a use for {jobs - 1}"):
            convert(REAL[1].folder, tmp_path / "out", engine=name, jobs=jobs, max_ram="1G")
    assert convert(REAL[1].folder, None, engine="serial", jobs=1, max_ram="1G").fit.threads == 1
