"""Carry out a plan: fill its files within a budget, resume a run that ended early, publish, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from streamconv.core.counting import Counted
from streamconv.core.result import Result
from streamconv.execution.fit import Fit, check_budget
from streamconv.execution.journal import Journal, identity_of, refuse_another, refuse_incomplete
from streamconv.execution.options import RunOptions
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.staging import Staging, check_destination, clear_leftovers, staging
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.identity import refuse_changed
from streamconv.io.open_files import allow_open_files
from streamconv.io.output import DiscardedOutput, OutputFileWriter
from streamconv.io.refusals import refusals
from streamconv.io.source import OPEN_FILES
from streamconv.io.unread import read_unread
from streamconv.memory.budget import MemoryBudget, peak_rss_nbytes
from streamconv.planning.plan import OutputFile, Plan
from streamconv.values.replicas import Drift, compare_replicas

__all__ = ["ConversionReport", "Progress", "run_plan"]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread."""


@dataclass(frozen=True, slots=True, repr=False)
class ConversionReport(Result):
    """What a conversion did. Times in seconds, sizes in bytes; ``peak_nbytes`` is the process's peak resident set.

    ``destination`` is None if the result was discarded. ``resumed_nbytes`` were written by a run that ended early.
    """

    plan: Plan
    destination: Path | None
    seconds: float
    read_nbytes: int
    write_nbytes: int
    resumed_nbytes: int
    peak_nbytes: int
    fit: Fit
    drifts: tuple[Drift, ...]
    records_checked: int
    records_in_part: int
    records_without_crc: int

    @property
    def budget(self) -> MemoryBudget:
        """The memory budget of the run."""
        return self.fit.budget

    @property
    def nbytes_per_second(self) -> float:
        """Bytes written a second by this run, start-up and sync included."""
        return (self.write_nbytes - self.resumed_nbytes) / self.seconds if self.seconds else 0.0


def run_plan(
    work: Plan,
    destination: Path | None,
    options: RunOptions,
    *,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Carry out a plan; see :func:`streamconv.convert`."""
    began = time.monotonic()
    fit = check_budget(work, options)
    log = TileLog(work.jobs)
    refuse_changed(work.identities)
    if destination is not None:
        allow_open_files(_open_files(work, fit))
        clear_leftovers(destination)
        retired = _check_destination(work, destination, overwrite)
    drifts = compare_replicas(work.replicas, work.replicated_policy, fit.io, fit.block, log.sources)
    resumed = 0
    if destination is None:
        _discard(work, log, fit, progress)
        refuse_changed(work.identities)
    else:
        with staging(destination) as stage:
            resumed = _write(work, log, stage, fit, restart, progress)
            refuse_changed(work.identities)
            for name, text in work.small.items():
                stage.text(name, text)
            for name, path in work.copied.items():
                stage.copy(name, path)
            stage.publish(work.texts, retired)
    verdict = log.sources.verdict()
    return ConversionReport(
        plan=work,
        destination=destination,
        seconds=time.monotonic() - began,
        read_nbytes=log.read_nbytes,
        write_nbytes=work.write_nbytes,
        resumed_nbytes=resumed,
        peak_nbytes=peak_rss_nbytes(),
        fit=fit,
        drifts=tuple(drifts),
        records_checked=verdict.checked,
        records_in_part=verdict.in_part,
        records_without_crc=verdict.without_crc,
    )


def _check_destination(work: Plan, destination: Path, overwrite: bool) -> list[str]:
    """Check the destination; returns the names in it that the result retires."""
    names = [*(file.path for file in work.files), *work.texts, *work.small, *work.copied]
    return check_destination(
        work.source,
        destination,
        sorted({name.split("/", 1)[0] for name in names}),
        overwrite=overwrite,
        owned=work.owned,
        beside=work.beside,
        sources=[*work.source_paths, *_copied_from_elsewhere(work, destination)],
        root=work.root,
    )


def _discard(work: Plan, log: TileLog, fit: Fit, progress: Progress | None) -> None:
    """Run the whole conversion, but discard the bytes instead of writing them."""
    outputs, count = [DiscardedOutput()] * len(work.files), Counted(work.tensor_nbytes, progress)
    with closing(Workers(fit.settings)) as workers:
        run_tiles(log, outputs, workers, count)
        log.read_nbytes += read_unread(log.sources, workers.readers, count)


def _open_files(work: Plan, fit: Fit) -> int:
    """The number of descriptors that are open while files are filled; with direct transfers a file has two."""
    read = fit.settings.threads * min(OPEN_FILES, len(work.source_paths))
    return (len(work.files) + read) * (2 if fit.io == "direct" else 1)


def _copied_from_elsewhere(work: Plan, destination: Path) -> list[Path]:
    """The copied files, except those that already have their place in the destination."""
    places = {name: (destination.resolve() / name, path) for name, path in work.copied.items()}
    return [path for place, path in places.values() if path.resolve() != place]


def _write(work: Plan, log: TileLog, stage: Staging, fit: Fit, restart: bool, progress: Progress | None) -> int:
    """Fill the staged files, resuming an earlier run if there is one; returns the bytes that it had written."""
    identity = identity_of(work)
    journal = Journal(stage.journal)
    resumes = _prepare(work, journal, stage, identity, restart)
    stage.need(work.write_nbytes)
    with ExitStack() as opened:
        opened.callback(journal.close)
        writers = [
            opened.enter_context(
                closing(OutputFileWriter(stage.path(file.path), file.layout.nbytes, fit.window, fit.io, resume=resumes))
            )
            for file in work.files
        ]
        with _noting(stage):
            if resumes:
                journal.resume(log)
            else:
                stage.sync()
                journal.begin(identity)
        resumed = log.write_nbytes

        def note(done: Sequence[TileDone]) -> None:
            with _noting(stage):
                journal.add(done)

        count = Counted(work.tensor_nbytes, progress, resumed)
        with closing(Workers(fit.settings)) as workers:
            run_tiles(log, writers, workers, count, note)
            log.read_nbytes += read_unread(log.sources, workers.readers, count)
        for number, (file, writer) in enumerate(zip(work.files, writers, strict=True)):
            for offset, data in file.layout.frame(_crcs(log, number, file)):
                writer.write(offset, data, 0, len(data))
            writer.finish()
    return resumed


def _prepare(work: Plan, journal: Journal, stage: Staging, identity: dict[str, Any], restart: bool) -> bool:
    """Whether to resume from the staged files; if not, they are discarded."""
    if stage.is_resumable and not restart:
        with _noting(stage, "read"):
            noted = list(islice(journal.read(), 1))
        if noted:
            refuse_another(noted[0], identity, stage.destination)
            refuse_incomplete({stage.new / file.path: file.layout.nbytes for file in work.files})
            return True
    stage.begin_anew()
    return False


@contextmanager
def _noting(stage: Staging, verb: str = "write") -> Iterator[None]:
    with refusals(f"{verb} the journal", stage.journal):
        yield


def _crcs(log: TileLog, number: int, file: OutputFile) -> dict[int, int]:
    crcs = {}
    for key, (offset, nbytes) in enumerate(file.layout.storages):
        crc = log.targets.whole((number, offset), nbytes)
        if crc is None:
            raise RuntimeError(f"{file.path}: storage {key} of {nbytes} bytes was not written completely")
        crcs[key] = crc
    return crcs
