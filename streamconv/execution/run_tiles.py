"""Run the remaining tiles with the chosen engine."""

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
    """Do the remaining tiles of a log with the engine that the workers' settings name, and enter them in the log.

    Args:
        log: the jobs, from :func:`streamconv.moves.lower.lower`, and their finished tiles.
        outputs: the output files, by the jobs' file numbers.
        workers: the workers that do the tiles.
        progress: called after each tile with the number of bytes that it wrote, from any thread.
        journal: called with the tiles that have become durable: every two seconds, or after a tile that took longer,
            and at the end, also after an error. It is not called again once it, a write or a sync has failed.

    Raises:
        DamagedError: a record's CRC is not the recorded one.
        DifferenceError: a value does not fit the type that it is cast to.
        StorageError, DiskSpaceError: the system refused, or the source has become shorter.
    """
    assignment = Assignment(log, outputs, workers, progress, journal)
    try:
        find_engine(workers.settings.engine).run(assignment)
    except BaseException as failure:
        try:
            assignment.commit()
        except StreamconvError as commit_error:
            raise failure from commit_error
        raise
    assignment.commit()
