"""The workers of a run: each does one tile at a time in buffers of its own, which it reuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamconv.core.dtypes import cast_into
from streamconv.core.errors import DifferenceError, StreamconvError
from streamconv.core.lazy import combined
from streamconv.execution.settings import EngineSettings
from streamconv.io.checksums import crc32
from streamconv.io.direct import DIRECT_NBYTES, PAGE, Buffer, new_buffer
from streamconv.io.output import Output
from streamconv.io.source import SourceFiles
from streamconv.io.unread import Reader
from streamconv.moves.tiles import Move, Tile, Write, tile_nbytes

__all__ = ["TileWorker", "Workers"]

NDArray = npt.NDArray[Any]


class Workers:
    """The workers for some settings, one for each thread. They keep their buffers and open files over several runs."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.each = [TileWorker(settings) for _ in range(settings.threads)]

    @property
    def readers(self) -> list[Reader]:
        """The source files and the input buffer of each worker, for use between two runs."""
        return [(worker.files, worker.input) for worker in self.each]

    def close(self) -> None:
        """Close the source files."""
        for worker in self.each:
            worker.files.close()


class TileWorker:
    """Does one tile after another: reads it into its input buffer, moves it to its output buffer, writes it from there.

    Its buffers and its open source files are its own, and one thread at a time uses it.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.files = SourceFiles(settings.io)
        self.input, self.output = (new_buffer(nbytes) for nbytes in tile_nbytes(settings.block))

    def run(self, tile: Tile, outputs: Sequence[Output]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Read, move and write a tile; returns the CRC-32s of its reads and of its writes, in order.

        Raises:
            DifferenceError: a value does not fit the type that it is cast to.
            StorageError, DiskSpaceError: the system refused, or a source file has become shorter.
        """
        reads = []
        for read in tile.reads:
            part = _part(self.input, read.position, read.nbytes)
            offset = read.storage.offset + read.start
            self.files.read_into(read.storage.path, offset, self.input, read.position, read.nbytes)
            reads.append(crc32(part))
        if not tile.moves:
            for write in tile.writes:
                self._write_as_read(write, outputs[write.file])
            return tuple(reads), tuple(reads * len(tile.writes))
        try:
            for move in tile.moves:
                if isinstance(move, Move):
                    self._move(move)
                else:
                    move.apply(self.input, self.output)
        except DifferenceError as error:
            storage = tile.reads[0].storage
            raise DifferenceError(error.what, where=f"{storage.path}: {storage.name}", remedy=error.remedy) from error
        writes = []
        for write in tile.writes:
            writes.append(crc32(_part(self.output, write.position, write.nbytes)))
            _write(write, outputs[write.file], self.output, write.position)
        return tuple(reads), tuple(writes)

    def crc_of(self, path: Path, offset: int, nbytes: int) -> int:
        """The CRC-32 of a file's bytes, read in parts into the input buffer.

        Raises:
            StorageError: the system refused, or the file ends before.
        """
        crc, end = 0, offset + nbytes
        while offset < end:
            position = offset % PAGE
            length = min(end - offset, len(self.input) - PAGE - position)
            self.files.read_into(path, offset, self.input, position, length)
            crc = crc32(_part(self.input, position, length), crc)
            offset += length
        return crc

    def _move(self, move: Move) -> None:
        arrays: list[NDArray] = [
            np.ndarray(move.shape, move.source_dtype.numpy, self.input, position, strides)
            for position, strides in move.sources
        ]
        target: NDArray = np.ndarray(move.shape, move.target_dtype.numpy, self.output, move.position, move.strides)
        if arrays:
            cast_into(combined(arrays, move.divisor), target)
        else:
            target[...] = 0

    def _write_as_read(self, write: Write, output: Output) -> None:
        """Write the bytes that were read, copied first if a direct write needs them at another place in a page."""
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
