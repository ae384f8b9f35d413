"""Run the tiles that are left to be done with the engine that was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamconv.core.errors import StreamconvError
from streamconv.execution.assignment import Assignment, Note
from streamconv.execution.registry import find_engine
from streamconv.execution.tile_log import TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.output import Output

__all__ = ["run_tiles"]


def run_tiles(
    log: TileLog,
    outputs: Sequence[Output],
    workers: Workers,
    progress: Callable[[int], None],
    journal: Note | None = None,
) -> None:
    """Do what a log says is left, with the engine that the workers' settings name, and enter it in the log.

    Args:
        log: the jobs, from :func:`streamconv.moves.lower.lower`, and what is done of them.
        outputs: the files that the jobs number.
        workers: who does it.
        progress: called with each number of bytes that was written, from any thread.
        journal: called every two seconds or after a tile that took longer, and at the end however it ends, with the
            tiles that have become durable. Not any more once it or a sync has failed.

    Raises:
        DamagedError: the source ends early, or a record's CRC is not the recorded one.
        DifferenceError: a value does not fit the type that it is cast to.
        StorageError, DiskSpaceError: the system refused.
    """
    assignment = Assignment(log, outputs, workers, progress, journal)
    try:
        find_engine(workers.settings.engine).run(assignment)
    except BaseException as failure:
        try:
            assignment.commit()
        except StreamconvError as second:
            raise failure from second
        raise
    assignment.commit()
