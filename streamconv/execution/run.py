"""Carry out a plan: fill its files within a budget, resume a run that ended early, publish, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from streamconv.core.counting import Counted
from streamconv.core.log import log as logger
from streamconv.core.result import Result
from streamconv.core.work_folder import RECEIPT, WORK_FOLDER
from streamconv.execution.destination import Destination
from streamconv.execution.fit import Fit, check_budget
from streamconv.execution.journal import Journal
from streamconv.execution.options import RunOptions
from streamconv.execution.receipt import receipt_of
from streamconv.execution.resuming import find_earlier
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.staging import Staging, staging
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.identity import refuse_changed
from streamconv.io.open_files import allow_open_files
from streamconv.io.output import DiscardedOutput, OutputFileWriter
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
    ``was_done`` says that the destination already held the result of this conversion, and nothing was written.
    """

    plan: Plan
    destination: Path | None
    seconds: float
    read_nbytes: int
    write_nbytes: int
    resumed_nbytes: int
    was_done: bool
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
    notice: Callable[[str], None] = logger.warning,
) -> ConversionReport:
    """Carry out a plan; see :func:`streamconv.convert`. ``notice`` is called with what a user should know at once."""
    began = time.monotonic()
    fit = check_budget(work, options)
    tiles = TileLog(work.jobs)
    refuse_changed(work.identities)
    if destination is None:
        drifts = _compared(work, fit, tiles)
        _discard(work, tiles, fit, progress)
        refuse_changed(work.identities)
        return _report(work, None, fit, tiles, drifts, began)
    allow_open_files(_open_files(work, fit))
    there = Destination(work, destination, overwrite=overwrite, restart=restart)
    if (destination / WORK_FOLDER).exists():
        there.refuse_sources()  # what else is there is only known when it has been cleared up
    elif there.is_done():
        return _report(work, destination, fit, tiles, [], began, was_done=True)
    with staging(destination, notice) as stage:
        if there.is_done():
            return _report(work, destination, fit, tiles, [], began, was_done=True)
        drifts = _compared(work, fit, tiles)
        resumed = _write(work, tiles, stage, fit, there, progress)
        refuse_changed(work.identities)
        for name, text in work.small.items():
            stage.text(name, text)
        for name, path in work.copied.items():
            stage.copy(name, path)
        stage.publish({RECEIPT: receipt_of(work, there.identity), **work.texts}, there.retired)
    return _report(work, destination, fit, tiles, drifts, began, resumed=resumed)


def _compared(work: Plan, fit: Fit, log: TileLog) -> list[Drift]:
    return compare_replicas(work.replicas, work.replicated_policy, fit.io, fit.block, log.sources)


def _report(
    work: Plan,
    destination: Path | None,
    fit: Fit,
    log: TileLog,
    drifts: Sequence[Drift],
    began: float,
    *,
    resumed: int = 0,
    was_done: bool = False,
) -> ConversionReport:
    verdict = log.sources.verdict()
    return ConversionReport(
        plan=work,
        destination=destination,
        seconds=time.monotonic() - began,
        read_nbytes=log.read_nbytes,
        write_nbytes=0 if was_done else work.write_nbytes,
        resumed_nbytes=resumed,
        was_done=was_done,
        peak_nbytes=peak_rss_nbytes(),
        fit=fit,
        drifts=tuple(drifts),
        records_checked=verdict.checked,
        records_in_part=verdict.in_part,
        records_without_crc=verdict.without_crc,
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


def _write(work: Plan, log: TileLog, stage: Staging, fit: Fit, there: Destination, progress: Progress | None) -> int:
    """Fill the staged files, going on where an earlier run ended; returns the bytes that it had written."""
    earlier = find_earlier(work, stage, there)
    stage.need(work.write_nbytes)
    journal = Journal(stage.journal) if earlier is None else earlier.journal
    with ExitStack() as opened:
        opened.callback(journal.close)
        writers = [
            opened.enter_context(
                closing(
                    OutputFileWriter(
                        stage.path(file.path), file.layout.nbytes, fit.window, fit.io, resume=earlier is not None
                    )
                )
            )
            for file in work.files
        ]
        stage.sync()
        count = Counted(work.tensor_nbytes, progress)
        with closing(Workers(fit.settings)) as workers:
            if earlier is None:
                journal.begin(there.identity)
            else:
                earlier.go_on(log, writers, workers, count)
            resumed = log.write_nbytes

            def note(done: Sequence[TileDone]) -> None:
                stage.owner.confirm()
                journal.add(done)

            run_tiles(log, writers, workers, count, note)
            log.read_nbytes += read_unread(log.sources, workers.readers, count)
        for number, (file, writer) in enumerate(zip(work.files, writers, strict=True)):
            for offset, data in file.layout.frame(_crcs(log, number, file)):
                writer.write(offset, data, 0, len(data))
            writer.finish()
    return resumed


def _crcs(log: TileLog, number: int, file: OutputFile) -> dict[int, int]:
    crcs = {}
    for key, (offset, nbytes) in enumerate(file.layout.storages):
        crc = log.targets.whole((number, offset), nbytes) if nbytes else 0
        if crc is None:
            raise RuntimeError(f"{file.path}: storage {key} of {nbytes} bytes was not written completely")
        crcs[key] = crc
    return crcs
