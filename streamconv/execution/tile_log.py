"""The progress of a run: its finished tiles, and the checksums of all bytes that were read and written.

A tile is identified by its job and its range, not by the block it was cut to. So a run that is resumed with another
budget, and therefore another block, only does the remaining ranges.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import NamedTuple

from streamconv.io.checksums import ChecksumBook, SourceChecksums
from streamconv.moves.jobs import Job
from streamconv.moves.tiles import Tile

__all__ = ["TileDone", "TileLog"]


class TileDone(NamedTuple):
    """A tile that is written: elements, rows or columns ``first`` to ``last`` of a job, and the CRC-32s of its reads
    and writes, in order.
    """

    job: int
    first: int
    last: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class TileLog:
    """The finished tiles of some jobs, in memory; the journal on the disk contains those that are durable.

    ``sources`` and ``targets`` are the checksums, the latter by (file, record).
    """

    def __init__(self, jobs: Sequence[Job], sources: SourceChecksums | None = None) -> None:
        """``sources`` continues the checksums of other jobs that read the same source."""
        self.jobs = jobs
        self.sources = sources or SourceChecksums()
        self.targets: ChecksumBook[tuple[int, int]] = ChecksumBook()
        self.read_nbytes = self.write_nbytes = 0
        self._lock = Lock()
        self._done: dict[int, list[tuple[int, int]]] = {}

    def add(self, done: TileDone, tile: Tile) -> None:
        """Enter a finished tile.

        Raises:
            DamagedError: the tile completes a storage, whose CRC-32 is not the recorded one.
            ValueError: the numbers of checksums are not those of the tile's reads and writes.
        """
        for read, crc in zip(tile.reads, done.reads, strict=True):
            self.sources.add(read.storage, read.start, read.nbytes, crc)
        for write, crc in zip(tile.writes, done.writes, strict=True):
            self.targets.add((write.file, write.record), write.start, write.nbytes, crc)
        with self._lock:
            _merge(self._done.setdefault(done.job, []), done.first, done.last)
            self.read_nbytes += sum(read.nbytes for read in tile.reads)
            self.write_nbytes += sum(write.nbytes for write in tile.writes)

    def tile(self, done: TileDone) -> Tile:
        """The tile that a journal says is done.

        Raises:
            ValueError: the jobs have no such tile, or it has other numbers of reads or writes.
        """
        if not 0 <= done.job < len(self.jobs):
            raise ValueError(f"there is no job {done.job}")
        job = self.jobs[done.job]
        if not 0 <= done.first < done.last <= job.length:
            raise ValueError(f"job {done.job} has no range {done.first} to {done.last} to be done")
        tile = job.tile(done.first, done.last)
        if (len(tile.reads), len(tile.writes)) != (len(done.reads), len(done.writes)):
            raise ValueError(f"job {done.job} has other reads or writes from {done.first} to {done.last}")
        return tile

    def enter(self, done: TileDone, tile: Tile | None = None) -> None:
        """Enter a tile from the journal of an earlier run, whose :meth:`tile` it is; one thread at a time may do that.

        Raises:
            ValueError: as :meth:`tile`, or it is done already.
            DamagedError: as :meth:`add`.
        """
        tile = tile or self.tile(done)
        ranges = self._done.get(done.job, [])
        after = bisect_left(ranges, (done.first, done.first))
        if any(first < done.last and done.first < last for first, last in ranges[max(0, after - 1) : after + 1]):
            raise ValueError(f"job {done.job} has no range {done.first} to {done.last} to be done")
        self.add(done, tile)

    def remaining(self) -> Iterator[tuple[int, int, int]]:
        """(job, first, last) of all ranges that are not done; tiles that are entered meanwhile are not considered."""
        done = {number: list(ranges) for number, ranges in self._done.items()}
        for number, job in enumerate(self.jobs):
            position = 0
            for first, last in done.get(number, ()):
                if position < first:
                    yield number, position, first
                position = last
            if position < job.length:
                yield number, position, job.length


def _merge(ranges: list[tuple[int, int]], first: int, last: int) -> None:
    """Add a range to sorted ones, and join it to those that it touches."""
    at = bisect_left(ranges, (first, last))
    if at < len(ranges) and ranges[at][0] == last:
        last = ranges.pop(at)[1]
    if at and ranges[at - 1][1] == first:
        at -= 1
        first = ranges.pop(at)[0]
    ranges.insert(at, (first, last))
