"""Run jobs on this host with a few threads, each with one input and one output buffer that are used again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.core.dtypes import cast_into
from streamconv.core.errors import DifferenceError, StreamconvError
from streamconv.core.lazy import combined
from streamconv.execution.settings import EngineSettings
from streamconv.execution.tile_log import Ledger, TileDone
from streamconv.io.checksums import crc32
from streamconv.io.direct import DIRECT_NBYTES, PAGE, Buffer, new_buffer
from streamconv.io.output import Output
from streamconv.io.source import SourceFiles
from streamconv.moves.tiles import Move, Tile, Write, tile_nbytes

__all__ = ["Crew", "run"]

# Soon at first, so that a run which is killed early has something to go on with.
_FIRST_COMMIT_SECONDS, _COMMIT_SECONDS = 0.25, 2.0
NDArray = npt.NDArray[Any]


class Crew:
    """Threads' buffers and open files, to be used for several runs."""

    def __init__(self, settings: EngineSettings) -> None:
        self.block = settings.block
        self.workers = [_Worker(SourceFiles(settings.io), settings.block) for _ in range(settings.threads)]

    def close(self) -> None:
        """Close the source files."""
        for worker in self.workers:
            worker.files.close()


def run(
    ledger: Ledger,
    outputs: Sequence[Output],
    crew: Crew,
    progress: Callable[[int], None],
    journal: Callable[[Sequence[TileDone]], None] | None = None,
) -> None:
    """Do what the ledger says is left, and enter it there.

    Args:
        ledger: the jobs, from :func:`streamconv.moves.lower.lower`, and what is done of them.
        outputs: the files that the jobs number.
        crew: who does it.
        progress: called with each number of bytes that was written, from any thread.
        journal: called every two seconds at the latest, and at the end however it ends, with the tiles that have
            become durable.

    Raises:
        DamagedError: the source ends early, or a record's CRC is not the recorded one.
        DifferenceError: a value does not fit the type that it is cast to.
        StorageError, DiskSpaceError: the system refused.
    """
    shared = _Shared(ledger, outputs, crew.block, progress, journal)
    threads = [Thread(target=shared.work, args=(worker,), daemon=True) for worker in crew.workers]
    committer = Thread(target=shared.commit_regularly, daemon=True)
    for thread in (*threads, committer):
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        shared.stop()
        for thread in threads:
            thread.join()
        raise
    finally:
        shared.ended.set()
        committer.join()
    if shared.failure is not None:
        raise shared.failure


class _Shared:
    """What the threads share: the tiles still to do, those not yet noted, the first failure."""

    def __init__(
        self,
        ledger: Ledger,
        outputs: Sequence[Output],
        block: int,
        progress: Callable[[int], None],
        journal: Callable[[Sequence[TileDone]], None] | None,
    ) -> None:
        self.ledger, self.outputs, self.block = ledger, outputs, block
        self.progress, self.journal = progress, journal
        self.todo = self._ranges()
        self.lock = Lock()
        self.ended = Event()
        self.failure: BaseException | None = None
        self.unnoted: list[TileDone] = []
        self.touched: set[int] = set()

    def _ranges(self) -> Iterator[tuple[int, int, int]]:
        for number, first, last in self.ledger.remaining():
            for start, stop in self.ledger.jobs[number].cut(first, last, self.block):
                yield number, start, stop

    def next_range(self) -> tuple[int, int, int] | None:
        with self.lock:
            return next(self.todo, None) if self.failure is None else None

    def stop(self) -> None:
        with self.lock:
            self.todo = iter(())

    def fail(self, error: BaseException) -> None:
        with self.lock:
            self.failure = self.failure or error

    def work(self, worker: _Worker) -> None:
        try:
            while (found := self.next_range()) is not None:
                number, first, last = found
                tile = self.ledger.jobs[number].tile(first, last)
                reads, writes = worker.run(tile, self.outputs)
                done = TileDone(number, first, last, reads, writes)
                self.ledger.add(done, tile)
                self.note(done, tile)
                self.progress(sum(write.nbytes for write in tile.writes))
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits in run(), which raises it
            self.fail(error)

    def note(self, done: TileDone, tile: Tile) -> None:
        if self.journal is not None:
            with self.lock:
                self.unnoted.append(done)
                self.touched.update(write.file for write in tile.writes)

    def commit_regularly(self) -> None:
        try:
            seconds = _FIRST_COMMIT_SECONDS
            while not self.ended.wait(seconds):
                self.commit()
                seconds = min(2 * seconds, _COMMIT_SECONDS)
            self.commit()
        except BaseException as error:  # noqa: BLE001 - as in work()
            self.fail(error)

    def commit(self) -> None:
        with self.lock:
            done, self.unnoted = self.unnoted, []
            touched, self.touched = self.touched, set()
        if self.journal is not None and done:
            for number in sorted(touched):
                self.outputs[number].commit()
            self.journal(done)


class _Worker:
    def __init__(self, files: SourceFiles, block: int) -> None:
        self.files = files
        self.input, self.output = (new_buffer(nbytes) for nbytes in tile_nbytes(block))

    def run(self, tile: Tile, outputs: Sequence[Output]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Read, move and write; the CRC-32s of the reads and of the writes."""
        reads = []
        for read in tile.reads:
            part = _part(self.input, read.position, read.nbytes)
            offset = read.storage.offset + read.start
            self.files.read_into(read.storage.path, offset, self.input, read.position, read.nbytes)
            reads.append(crc32(part))
        if not tile.moves:
            for write in tile.writes:
                self.write_as_read(write, outputs[write.file])
            return tuple(reads), tuple(reads * len(tile.writes))
        try:
            for move in tile.moves:
                self.move(move)
        except DifferenceError as error:
            storage = tile.reads[0].storage
            raise DifferenceError(error.what, where=f"{storage.path}: {storage.name}", remedy=error.remedy) from error
        writes = []
        for write in tile.writes:
            writes.append(crc32(_part(self.output, write.position, write.nbytes)))
            _write(write, outputs[write.file], self.output, write.position)
        return tuple(reads), tuple(writes)

    def move(self, move: Move) -> None:
        arrays: list[NDArray] = [
            np.ndarray(move.shape, move.source_dtype.numpy, self.input, position, strides)
            for position, strides in move.sources
        ]
        target: NDArray = np.ndarray(move.shape, move.target_dtype.numpy, self.output, move.position, move.strides)
        if arrays:
            cast_into(combined(arrays, move.divisor), target)
        else:
            target[...] = 0

    def write_as_read(self, write: Write, output: Output) -> None:
        """Write what was read, brought to the place in its pages that a direct write needs."""
        place = (write.record + write.start) % PAGE
        if place == write.position % PAGE or write.nbytes < DIRECT_NBYTES or not output.wants_pages:
            _write(write, output, self.input, write.position)
            return
        target = np.frombuffer(_part(self.output, place, write.nbytes), np.uint8)
        np.copyto(target, np.frombuffer(_part(self.input, write.position, write.nbytes), np.uint8))
        _write(write, output, self.output, place)


def _write(write: Write, output: Output, buffer: Buffer, position: int) -> None:
    output.write(write.record + write.start, buffer, position, write.nbytes)


def _part(buffer: Buffer, position: int, nbytes: int) -> memoryview:
    part = memoryview(buffer)[position : position + nbytes]
    if len(part) != nbytes:
        raise StreamconvError(f"a tile needs {nbytes} bytes from {position}, the buffer has {len(buffer)}")
    return part
