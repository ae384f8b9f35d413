"""Measure a disk with the engine's own ways of reading and writing, and predict the time of a conversion."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DestinationError, DiskSpaceError
from streamconv.core.lazy import LazyTensor, Storage, View
from streamconv.core.result import Result
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.settings import EngineSettings
from streamconv.execution.tile_log import TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.direct import page_end
from streamconv.io.output import DiscardedOutput, Output, OutputFileWriter
from streamconv.io.refusals import refused_by_system
from streamconv.memory.budget import MIB, format_bytes
from streamconv.moves.jobs import Target
from streamconv.moves.lower import lower
from streamconv.planning.plan import Plan

__all__ = ["DiskReport", "DiskSpeed", "Prediction", "measure_disk", "predict"]

_WINDOW = 16 * MIB
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Bytes a second when only reading, only writing, and copying (each byte read and written), the sync included.

    Each is the median of several rounds of ``nbytes``.
    """

    folder: Path
    nbytes: int
    settings: EngineSettings
    read: float
    write: float
    copy: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted seconds of a conversion's disk work, and the numbers that they were computed from."""

    seconds: float
    read_nbytes: int
    write_nbytes: int
    same_disk: bool


@dataclass(frozen=True, slots=True, repr=False)
class DiskReport(Result):
    """A measured disk, and the predicted time of a conversion on it, if one was asked for.

    ``planning`` are the seconds that planning the conversion took.
    """

    speed: DiskSpeed
    prediction: Prediction | None
    planning: float


def measure_disk(folder: Path, nbytes: int, settings: EngineSettings) -> DiskSpeed:
    """Write, read and copy files of ``nbytes`` in a temporary folder inside ``folder``.

    Raises:
        DestinationError: ``folder`` is no folder.
        DiskSpaceError, StorageError: there is no room for two such files, or the system refused.
    """
    if not folder.is_dir():
        raise DestinationError("not a folder, so there is no disk to measure", where=folder)
    nbytes = page_end(nbytes)
    free = shutil.disk_usage(folder).free
    if free < 2 * nbytes:
        raise DiskSpaceError(
            f"measuring takes {format_bytes(2 * nbytes)}, the disk has {format_bytes(free)} free",
            where=folder,
            remedy="say a smaller --size",
        )
    reads, writes, copies = [], [], []
    with _own_folder(folder) as own, closing(Workers(settings)) as workers:
        for number in range(_ROUNDS):
            source, target = own / f"source-{number}", own / f"target-{number}"
            writes.append(nbytes / _timed_write(source, nbytes, workers))
            reads.append(nbytes / _timed_copy(source, nbytes, workers, [DiscardedOutput()]))
            began = time.monotonic()
            writer = OutputFileWriter(target, nbytes, _WINDOW, settings.io)
            seconds = _timed_copy(source, nbytes, workers, [writer])
            writer.finish()
            copies.append(nbytes / max(seconds, time.monotonic() - began))
            source.unlink()
            target.unlink()
    return DiskSpeed(folder, nbytes, settings, median(reads), median(writes), median(copies))


def predict(plan: Plan, speed: DiskSpeed) -> Prediction:
    """The time of a conversion into the measured folder.

    On the same disk, bytes that are both read and written go at the speed of a copy, the rest at the speed of reading
    or writing alone. From another disk the slower side decides; that disk is assumed to be as fast as the measured one.
    """
    read, write = plan.read_nbytes, plan.write_nbytes
    same = plan.source.stat().st_dev == speed.folder.stat().st_dev
    if same:
        both = min(read, write)
        seconds = both / speed.copy + (read - both) / speed.read + (write - both) / speed.write
    else:
        seconds = max(read / speed.read, write / speed.write)
    return Prediction(seconds, read, write, same)


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    try:
        own = Path(tempfile.mkdtemp(prefix=".streamconv-bench-", dir=folder))
    except OSError as error:
        raise refused_by_system("write there", error, folder) from error
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _timed_write(path: Path, nbytes: int, workers: Workers) -> float:
    """The seconds to write random bytes, which no file system can compress, and to make them durable."""
    buffer, block = workers.each[0].output, workers.settings.block
    buffer[:block] = os.urandom(block)
    began = time.monotonic()
    with closing(OutputFileWriter(path, nbytes, _WINDOW, workers.settings.io)) as writer:
        for offset in range(0, nbytes, block):
            writer.write(offset, buffer, 0, min(block, nbytes - offset))
        writer.finish()
    return time.monotonic() - began


def _timed_copy(path: Path, nbytes: int, workers: Workers, outputs: list[Output]) -> float:
    """The seconds to copy a file into the outputs with the engine."""
    tensor = LazyTensor.stored(View(Storage(path, 0, nbytes, path.name), DTYPES["uint8"], 0, (1,)), (nbytes,))
    began = time.monotonic()
    run_tiles(TileLog(lower([Target(0, 0, tensor)])), outputs, workers, lambda _: None)
    return time.monotonic() - began
