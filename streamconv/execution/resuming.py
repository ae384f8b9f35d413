"""Go on where an earlier run ended: read back what its journal says is durable, and enter what is as it was written.

A disk may lose or change what it acknowledged, and a journal may be another one than the staged files'. So every tile
is read back, and the CRC-32s of its bytes are compared with those in the journal. A tile that differs is done again.
What is right goes into a new journal, which then takes the place of the old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any

from streamconv.core.counting import Counted
from streamconv.core.pool import run_pool
from streamconv.execution.destination import Destination
from streamconv.execution.identity import refuse_another
from streamconv.execution.journal import Journal
from streamconv.execution.staging import Staging
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.execution.tile_worker import TileWorker, Workers
from streamconv.io.output import OutputFileWriter
from streamconv.memory.budget import format_bytes
from streamconv.planning.plan import Plan

__all__ = ["EarlierRun", "find_earlier"]

_BATCH = 256


def find_earlier(work: Plan, stage: Staging, there: Destination) -> EarlierRun | None:
    """The earlier run of the same conversion that left its work there; what another left is discarded on ``restart``.

    Raises:
        DestinationError: another conversion left its work there.
        StorageError: the system refused to read the journal.
    """
    if stage.is_resumable and not there.restart:
        noted = list(islice(Journal(stage.journal).read(), 1))
        if noted:
            refuse_another(noted[0], there.identity, stage.destination)
            stage.keep_only({file.path for file in work.files})
            return EarlierRun(stage, there.identity)
    stage.begin_anew()
    return None


class EarlierRun:
    """A run of the same conversion that ended early: its journal, and its staged files.

    Attributes:
        journal: the one of the run that goes on.
    """

    def __init__(self, stage: Staging, identity: Mapping[str, Any]) -> None:
        self._stage, self._identity = stage, identity
        self._old = Journal(stage.journal)
        self.journal = Journal(stage.journal.with_suffix(".new"))
        self._lock = Lock()
        self._right: list[TileDone] = []
        self._lost_nbytes = 0

    def go_on(self, log: TileLog, outputs: Sequence[OutputFileWriter], workers: Workers, count: Counted) -> None:
        """Enter the tiles that are as they were written into the log and the new journal.

        That then takes the place of the old one.

        Args:
            log: the jobs; none of their tiles is done.
            outputs: the staged files, by the jobs' file numbers. They are synced first, and read from the disk.
            workers: they read.
            count: counts the bytes that are right.

        Raises:
            DestinationError: the journal does not fit the jobs.
            DamagedError: a tile completes a source record, whose CRC-32 is not the recorded one.
            StorageError, DiskSpaceError: the system refused.
        """
        self._stage.notice(
            f"going on with a conversion that ended early, at {self._share(log):.0%}: what it wrote is read back first"
        )
        for output in outputs:
            output.settle()
        self.journal.begin(self._identity)
        run_pool(workers.each, self._old.tiles(), partial(self._take, log, outputs, count))
        self.journal.add(self._right)
        self.journal.replace(self._old.path)
        if self._lost_nbytes:
            self._stage.notice(f"{format_bytes(self._lost_nbytes)} are not as they were written, and are done again")

    def _share(self, log: TileLog) -> float:
        """How much of the conversion the journal says is done."""
        done, total = 0.0, sum(job.read_nbytes for job in log.jobs)
        for tile in self._old.tiles():
            if 0 <= tile.job < len(log.jobs):  # one that is not is refused when it is read back
                job = log.jobs[tile.job]
                done += job.read_nbytes * (tile.last - tile.first) / max(1, job.length)
        return done / total if total else 0.0

    def _take(
        self,
        log: TileLog,
        outputs: Sequence[OutputFileWriter],
        count: Counted,
        worker: TileWorker,
        done: TileDone,
    ) -> None:
        """Read one tile back, and enter it if it is as it was written."""
        try:
            tile = log.tile(done)
            nbytes = sum(write.nbytes for write in tile.writes)
            is_right = all(
                worker.crc_of(outputs[write.file].path, write.record + write.start, write.nbytes) == crc
                for write, crc in zip(tile.writes, done.writes, strict=True)
            )
            with self._lock:
                if not is_right:
                    self._lost_nbytes += nbytes
                    return
                log.enter(done, tile)
                self._right.append(done)
                if len(self._right) == _BATCH:
                    self.journal.add(self._right)
                    self._right = []
        except ValueError as error:
            raise self._old.unfit(error) from error
        count(nbytes)
