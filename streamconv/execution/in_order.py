"""Read whole tensors in row-major order, wherever their elements are stored, inside a memory budget.

A conversion may write its tiles in any order; whoever takes a digest wants the first byte first. So each tensor is cut
into bands of rows, and the jobs of a conversion fill a pool with one band after the other: a tensor that ranks hold by
columns is gathered row by row, a transposed one block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from streamconv.core.counting import Counted
from streamconv.core.lazy import LazyTensor
from streamconv.execution.in_memory import MemoryOutput
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.settings import EngineSettings
from streamconv.execution.tile_log import TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.checksums import SourceChecksums
from streamconv.io.direct import PAGE, new_buffer
from streamconv.io.identity import identities_of, refuse_changed
from streamconv.io.unread import read_unread
from streamconv.memory.budget import MIB, parse_budget
from streamconv.memory.fit import MemoryNeed, fit_budget
from streamconv.moves.jobs import Target
from streamconv.moves.lower import lower
from streamconv.moves.tiles import buffer_nbytes
from streamconv.values.options import ReadingOptions

__all__ = ["OrderedSettings", "fit_in_order", "read_in_order"]

_LARGEST_BLOCK, _SMALLEST_BLOCK = 16 * MIB, MIB
_THREADS, _FEW_THREADS = 4, 2
# Thread stacks, the jobs of a batch, the short reads of a transposed matrix and their checksums, allocator slack.
_MARGIN = 28 * MIB
# A transposed matrix is read in runs as long as a band is high: a pool of few rows would make them short.
_BLOCKS_IN_POOL, _SMALLEST_POOL = 4, 8 * MIB
# The bands of small tensors that are read together; the jobs of each take a few kilobytes.
_MOST_TOGETHER = 1024
_LINE = 64


@dataclass(frozen=True, slots=True)
class OrderedSettings:
    """How tiles are moved, and the bytes of the pool that they are moved to."""

    engine: EngineSettings
    pool: int


class _Band(NamedTuple):
    name: str
    place: int
    tensor: LazyTensor


def fit_in_order(options: ReadingOptions) -> OrderedSettings:
    """Fit buffers and pool into a budget; no row is too long for the smallest.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works in this process.
        UsageError: the number of threads is out of range.
    """
    need = MemoryNeed(
        what="reading tensors in order",
        nbytes=lambda block, threads: buffer_nbytes(block, threads) + _pool(block),
        smallest=_SMALLEST_BLOCK,
        largest=_LARGEST_BLOCK,
        step=PAGE,
        margin=_MARGIN,
        threads=((_THREADS, _LARGEST_BLOCK), (_FEW_THREADS, _SMALLEST_BLOCK)),
    )
    fitted = fit_budget(need, parse_budget(options.max_ram), options.jobs)
    engine = EngineSettings(fitted.block, fitted.threads, options.io)
    return OrderedSettings(engine, _pool(fitted.block))


def _pool(block: int) -> int:
    return max(_SMALLEST_POOL, _BLOCKS_IN_POOL * block)


def read_in_order(
    tensors: Mapping[str, LazyTensor],
    settings: OrderedSettings,
    sources: SourceChecksums,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[str, memoryview]]:
    """The bytes of tensors, one tensor after the other, each in row-major order.

    Args:
        tensors: the tensors by name.
        settings: from :func:`fit_in_order`.
        sources: compares the bytes that are read with the recorded CRC-32s.
        progress: called with (bytes done, bytes in all), from any thread.

    Yields:
        (name, its next bytes), which are valid until the next step. Nothing for a tensor without elements.

    Raises:
        DamagedError: a record's CRC-32 is not the recorded one, which may be known at the end only, or a file was
            changed since it was opened.
        StorageError: the system refused, or a file ends early.
    """
    pool = new_buffer(settings.pool)
    view = memoryview(pool).toreadonly()
    count = Counted(sum(tensor.nbytes for tensor in tensors.values()), progress)
    with closing(Workers(settings.engine)) as workers:
        for batch in _batches(tensors, settings):
            jobs = [job for band in batch for job in lower([Target(0, band.place, band.tensor)])]
            run_tiles(TileLog(jobs, sources), [MemoryOutput(pool)], workers, count)
            for band in batch:
                yield band.name, view[band.place : band.place + band.tensor.nbytes]
        read_unread(sources, workers.readers, count)
    refuse_changed(identities_of(tensors.values()))


def _batches(tensors: Mapping[str, LazyTensor], settings: OrderedSettings) -> Iterator[list[_Band]]:
    """The bands of all tensors, as many together as the pool holds."""
    batch: list[_Band] = []
    position = 0
    for name, tensor in tensors.items():
        for band in _bands(tensor, settings.engine.block, settings.pool):
            if batch and (position + band.nbytes > settings.pool or len(batch) >= _MOST_TOGETHER):
                yield batch
                batch, position = [], 0
            batch.append(_Band(name, position, band))
            position += band.nbytes + -band.nbytes % _LINE
    if batch:
        yield batch


def _bands(tensor: LazyTensor, block: int, pool: int) -> Iterator[LazyTensor]:
    """A tensor in bands of rows that fit into the pool, a row of each into a block; a longer row is cut itself."""
    while len(tensor.shape) > 1 and tensor.shape[0] == 1:
        tensor = tensor.flatten(0)
    if not tensor.numel:
        return
    if not tensor.shape:
        yield tensor
        return
    rows = tensor.shape[0]
    if len(tensor.shape) > 1 and _row_need(tensor) > block:
        for row in range(rows):
            yield from _bands(tensor.slice(0, row, row + 1), block, pool)
        return
    step = max(1, pool // (tensor.nbytes // rows))
    for row in range(0, rows, step):
        yield tensor.slice(0, row, min(rows, row + step))


def _row_need(tensor: LazyTensor) -> int:
    """The most bytes that a row can take in a buffer, see :attr:`streamconv.moves.jobs.RowsJob.row_nbytes`."""
    sizes = [tensor.dtype.itemsize]
    for piece in tensor.pieces:
        read = sum(view.dtype.itemsize for view in piece.views)
        sizes.append(max(read, tensor.dtype.itemsize) + (0 if piece.is_stored or not piece.views else 16))
    return max(sizes) * (tensor.numel // tensor.shape[0])
