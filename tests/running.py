"""Run the engine's parts by hand, as several tests need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.settings import EngineSettings
from streamconv.execution.staging import staging
from streamconv.execution.tile_log import TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.output import OutputFileWriter
from streamconv.moves.jobs import Job
from streamconv.moves.tiles import Tile


def clear_leftovers(destination: Path) -> None:
    """Do there what the next run does first."""
    with staging(destination):
        pass


def tiles_of(job: Job, block: int) -> Iterator[Tile]:
    """All tiles of a job."""
    return (job.tile(first, last) for first, last in job.cut(0, job.length, block))


def run_engine(
    jobs: Sequence[Job], writers: Sequence[OutputFileWriter], settings: EngineSettings, done: list[int] | None = None
) -> TileLog:
    """Run all jobs; what was done of them. ``done`` receives the numbers of bytes as they are written."""
    log = TileLog(jobs)
    with closing(Workers(settings)) as workers:
        run_tiles(log, writers, workers, (lambda _: None) if done is None else done.append)
    return log
