"""Run the engine's parts by hand, as several tests need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from streamconv.execution import threads
from streamconv.execution.settings import EngineSettings
from streamconv.execution.threads import Crew
from streamconv.execution.tile_log import Ledger
from streamconv.io.output import OutputFileWriter
from streamconv.moves.jobs import Job
from streamconv.moves.tiles import Tile


def tiles_of(job: Job, block: int) -> Iterator[Tile]:
    """All tiles of a job."""
    return (job.tile(first, last) for first, last in job.cut(0, job.length, block))


def run_engine(
    jobs: Sequence[Job], writers: Sequence[OutputFileWriter], settings: EngineSettings, done: list[int] | None = None
) -> Ledger:
    """Run all jobs; what was done of them. ``done`` receives the numbers of bytes as they are written."""
    ledger = Ledger(jobs)
    with closing(Crew(settings)) as crew:
        threads.run(ledger, writers, crew, (lambda _: None) if done is None else done.append)
    return ledger
