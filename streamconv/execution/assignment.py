"""The work of an engine: the remaining tiles, the workers that do them, and the records of finished tiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import NamedTuple

from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.execution.tile_worker import TileWorker, Workers
from streamconv.io.output import Output
from streamconv.moves.tiles import Tile

__all__ = ["Assignment", "Note", "Range"]

Note = Callable[[Sequence[TileDone]], None]
"""Records tiles whose bytes have become durable."""

# The first commits come early, so that a run that is killed soon can still be resumed.
_FIRST_COMMIT_SECONDS, _COMMIT_SECONDS = 0.25, 2.0


class Range(NamedTuple):
    """Elements, rows or columns ``first`` to ``last`` of a job: what one tile does."""

    job: int
    first: int
    last: int


class Assignment:
    """One run of an engine: the remaining tiles of a log, the workers, the outputs, the progress and the journal.

    A finished tile is entered in the log at once. A commit records it in the journal, after the files that it was
    written to have been made durable. Once a write, a sync or the journal has failed nothing is recorded any more.
    """

    def __init__(
        self,
        log: TileLog,
        outputs: Sequence[Output],
        workers: Workers,
        progress: Callable[[int], None],
        journal: Note | None = None,
    ) -> None:
        self.workers: Sequence[TileWorker] = workers.each
        self._log, self._outputs, self._block = log, outputs, workers.settings.block
        self._progress, self._journal = progress, journal
        self._lock = Lock()
        self._unnoted: list[TileDone] = []
        self._touched: set[int] = set()
        self._commit_failed = False
        self._pause = _FIRST_COMMIT_SECONDS
        self._due = time.monotonic() + self._pause

    def ranges(self) -> Iterator[Range]:
        """The work that remains when the run begins, job after job, cut into ranges that fit a worker's buffers."""
        for number, first, last in self._log.remaining():
            for start, stop in self._log.jobs[number].cut(first, last, self._block):
                yield Range(number, start, stop)

    def do(self, worker: TileWorker, part: Range) -> None:
        """Read, move and write one tile, and enter it in the log; any thread may call this.

        Raises:
            StreamconvError: see :func:`streamconv.execution.run_tiles.run_tiles`. The tile counts as not done.
        """
        tile = self._log.jobs[part.job].tile(part.first, part.last)
        reads, writes = worker.run(tile, self._outputs)
        done = TileDone(*part, reads, writes)
        self._log.add(done, tile)
        self.note(done, tile)
        self._progress(sum(write.nbytes for write in tile.writes))

    def note(self, done: TileDone, tile: Tile) -> None:
        """Let the next commit record a tile that has been written."""
        if self._journal is not None:
            with self._lock:
                # The files first: an interrupt in between must not leave a tile whose file is not synced.
                self._touched.update(write.file for write in tile.writes)
                self._unnoted.append(done)

    def commit_if_due(self) -> None:
        """Commit if the last commit was long enough ago; only one thread may call this.

        Raises:
            StorageError, DiskSpaceError: the system refused.
        """
        if time.monotonic() >= self._due:
            self.commit()
            self._pause = min(2 * self._pause, _COMMIT_SECONDS)
            self._due = time.monotonic() + self._pause

    def commit(self) -> None:
        """Make the tiles since the last commit durable, then record them.

        Does nothing once a commit, or any call that writes or syncs an output, has failed: which bytes were lost then
        is not known, since the system tells one call only.

        Raises:
            StorageError, DiskSpaceError: the system refused.
        """
        with self._lock:
            done, self._unnoted = self._unnoted, []
            touched, self._touched = self._touched, set()
        if self._journal is None or not done or self._commit_failed or self._has_failed():
            return
        self._commit_failed = True
        for number in sorted(touched):
            self._outputs[number].commit()
        if self._has_failed():  # in a worker meanwhile, which raises it
            return
        self._journal(done)
        self._commit_failed = False

    def _has_failed(self) -> bool:
        return any(output.has_failed for output in self._outputs)
