"""Run jobs on this host with a few threads, each with one input and one output buffer that are used again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.checksums import ChecksumBook, Verdict, verify_storages
from streamconv.dtypes import cast_into
from streamconv.errors import DifferenceError, StreamconvError
from streamconv.files.output_io import OutputFileWriter
from streamconv.files.source_io import SourceFiles
from streamconv.jobs import Job, Move, Tile
from streamconv.lazy import Storage, average

__all__ = ["EngineResult", "EngineSettings", "block_within", "buffer_nbytes", "run"]

_SLACK = 64 << 10
NDArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Block size in bytes, number of threads, how the source is read (``pread`` or ``mmap``)."""

    block: int
    threads: int
    io: str


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What happened: bytes moved, CRC-32s by (file, record), and how the source's own CRCs fared."""

    written: ChecksumBook[tuple[int, int]]
    source: Verdict
    read_nbytes: int
    write_nbytes: int


def buffer_nbytes(block: int, threads: int) -> int:
    """Bytes of all buffers: each thread has one of two blocks for input and one of a block for output."""
    return threads * (3 * block + 2 * _SLACK)


def block_within(nbytes: int, threads: int) -> int:
    """The largest block whose buffers take at most ``nbytes``."""
    return (nbytes // threads - 2 * _SLACK) // 3


def run(
    jobs: Sequence[Job],
    outputs: Sequence[OutputFileWriter],
    settings: EngineSettings,
    progress: Callable[[int], None],
) -> EngineResult:
    """Fill the outputs.

    Args:
        jobs: from :func:`streamconv.lower.lower`.
        outputs: the files that the jobs number.
        settings: block, threads, io.
        progress: called with each number of bytes that was written, from any thread.

    Raises:
        DamagedError: the source ends early, or a record's CRC is not the recorded one.
        StorageError, DiskSpaceError: the system refused.
    """
    shared = _Shared(jobs, outputs, settings, progress)
    threads = [Thread(target=shared.work, name=f"streamconv-{n}", daemon=True) for n in range(settings.threads)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        shared.stop()
        for thread in threads:
            thread.join()
        raise
    if shared.failure is not None:
        raise shared.failure
    return shared.result()


class _Shared:
    """What the threads share: the tiles still to do, the checksums, the first failure."""

    def __init__(
        self,
        jobs: Sequence[Job],
        outputs: Sequence[OutputFileWriter],
        settings: EngineSettings,
        progress: Callable[[int], None],
    ) -> None:
        self.outputs, self.settings, self.progress = outputs, settings, progress
        self.tiles = self._tiles(jobs)
        self.lock = Lock()
        self.failure: BaseException | None = None
        self.sources: ChecksumBook[Storage] = ChecksumBook()
        self.targets: ChecksumBook[tuple[int, int]] = ChecksumBook()
        self.read_nbytes = self.write_nbytes = 0

    def _tiles(self, jobs: Sequence[Job]) -> Iterator[Tile]:
        for job in jobs:
            yield from job.tiles(self.settings.block)

    def next_tile(self) -> Tile | None:
        with self.lock:
            return next(self.tiles, None) if self.failure is None else None

    def stop(self) -> None:
        with self.lock:
            self.tiles = iter(())

    def work(self) -> None:
        try:
            with closing(SourceFiles(self.settings.io)) as files:
                worker = _Worker(self, files)
                while (tile := self.next_tile()) is not None:
                    worker.run(tile)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits in run(), which raises it
            with self.lock:
                self.failure = self.failure or error

    def count(self, read: int, written: int) -> None:
        with self.lock:
            self.read_nbytes += read
            self.write_nbytes += written
        self.progress(written)

    def result(self) -> EngineResult:
        return EngineResult(self.targets, verify_storages(self.sources), self.read_nbytes, self.write_nbytes)


class _Worker:
    def __init__(self, shared: _Shared, files: SourceFiles) -> None:
        self.shared, self.files = shared, files
        self.input = bytearray(2 * shared.settings.block + _SLACK)
        self.output = bytearray(shared.settings.block + _SLACK)

    def run(self, tile: Tile) -> None:
        source = memoryview(self.input)
        for read in tile.reads:
            if read.position + read.nbytes > len(source):
                raise StreamconvError(f"a tile needs {read.position + read.nbytes} bytes, the buffer has {len(source)}")
            chunk = source[read.position : read.position + read.nbytes]
            self.files.read_into(read.storage.path, read.storage.offset + read.start, chunk)
            self.shared.sources.add(read.storage, read.start, chunk)
        try:
            for move in tile.moves:
                self.move(move)
        except DifferenceError as error:
            storage = tile.reads[0].storage
            raise DifferenceError(error.what, where=f"{storage.path}: {storage.name}", remedy=error.remedy) from error
        data = memoryview(self.output) if tile.moves else source
        for write in tile.writes:
            chunk = data[write.position : write.position + write.nbytes]
            if len(chunk) != write.nbytes:
                raise StreamconvError(
                    f"a tile writes {write.nbytes} bytes from {write.position}, the buffer has {len(data)}"
                )
            self.shared.outputs[write.file].write(write.record + write.start, chunk)
            self.shared.targets.add((write.file, write.record), write.start, chunk)
        self.shared.count(sum(r.nbytes for r in tile.reads), sum(w.nbytes for w in tile.writes))

    def move(self, move: Move) -> None:
        arrays: list[NDArray] = [
            np.ndarray(move.shape, move.source_dtype.numpy, self.input, position, strides)
            for position, strides in move.sources
        ]
        target: NDArray = np.ndarray(move.shape, move.target_dtype.numpy, self.output, move.position, move.strides)
        cast_into(arrays[0] if len(arrays) == 1 else average(arrays), target)
