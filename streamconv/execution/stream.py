"""The target framework's tensors one layer at a time, in memory, without writing files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from streamconv.core.dtypes import DType
from streamconv.core.identity import FileIdentity
from streamconv.core.layout import RankCoordinates
from streamconv.core.log import log
from streamconv.execution.fit import Fit, check_budget
from streamconv.execution.in_memory import MemoryOutput
from streamconv.execution.options import RunOptions, StreamOptions
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.tile_log import TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.checksums import SourceChecksums
from streamconv.io.direct import Buffer, new_buffer, page_end
from streamconv.io.identity import refuse_changed
from streamconv.io.unread import read_unread
from streamconv.models.parameter import Section
from streamconv.moves.jobs import Target
from streamconv.moves.lower import lower
from streamconv.planning.plan import OutputTensor, Plan
from streamconv.values.replicas import compare_replicas

__all__ = ["StreamedTensor", "stream_plan"]


class StreamedTensor(NamedTuple):
    """One tensor of one rank.

    ``layer`` counts transformer layers over all stages from 0; it is None for a tensor outside the layers. ``name`` is
    the dotted name in the state dict of that rank's model.
    """

    layer: int | None
    rank: RankCoordinates
    name: str
    tensor: Any

    def __repr__(self) -> str:
        where = "" if self.layer is None else f"layer {self.layer}, "
        rank = f"tp={self.rank.tp}, pp={self.rank.pp}"
        shape, dtype = tuple(self.tensor.shape), self.tensor.dtype
        return f"StreamedTensor({where}{rank}, {self.name!r}, shape={shape}, dtype={dtype})"


class _Member(NamedTuple):
    rank: RankCoordinates
    entry: OutputTensor


def stream_plan(work: Plan, how: StreamOptions, options: RunOptions) -> Iterator[StreamedTensor]:
    """Yield a plan's tensors; see :func:`streamconv.stream`. The call itself refuses all that can be refused."""
    if how.framework == "pt":
        import torch  # noqa: F401 - its memory must be in use before the budget is checked
    groups = _groups(work)
    largest = max((page_end(member.entry.tensor.nbytes) for group in groups for member in group), default=0)
    fit = check_budget(work, options, held=largest * (2 if how.copy else 1))
    refuse_changed(work.identities)
    sources = SourceChecksums()
    for drift in compare_replicas(work.replicas, work.replicated_policy, fit.io, fit.block, sources):
        warnings.warn(
            f"{drift.name} differs between ranks in {drift.elements} elements, by at most {drift.largest:g}; "
            f"the {work.replicated_policy} counts",
            stacklevel=3,
        )
    return _stream(groups, fit, largest, how, sources, work.identities)


def _stream(
    groups: Sequence[Sequence[_Member]],
    fit: Fit,
    largest: int,
    how: StreamOptions,
    sources: SourceChecksums,
    opened: Sequence[FileIdentity],
) -> Iterator[StreamedTensor]:
    whole = max((sum(page_end(member.entry.tensor.nbytes) for member in group) for group in groups), default=0)
    pool = new_buffer(min(whole, largest + fit.spare))
    try:
        with closing(Workers(fit.settings)) as workers:
            for group in groups:
                for batch in _batches(group, len(pool)):
                    yield from _tensors(batch, _fill(batch, pool, workers, sources), pool, how)
            read_unread(sources, workers.readers)
            refuse_changed(opened)
    except GeneratorExit:
        _report_unchecked(sources)
        raise


def _tensors(
    batch: Sequence[_Member], places: Sequence[int], pool: Buffer, how: StreamOptions
) -> Iterator[StreamedTensor]:
    for (rank, entry), position in zip(batch, places, strict=True):
        tensor = _tensor(pool, position, entry.tensor.shape, entry.tensor.dtype, how.framework)
        layer = entry.parameter.layer if entry.parameter.section is Section.LAYER else None
        for name in entry.names:
            yield StreamedTensor(layer, rank, name, _copied(tensor, how.framework) if how.copy else tensor)


def _report_unchecked(sources: SourceChecksums) -> None:
    """Log how many records were not compared with their CRC-32, because the caller wanted no more tensors."""
    verdict = sources.verdict()
    if verdict.in_part:
        log.warning(
            "the stream ended early: of the source's records %d were compared with their CRC-32, and %d, which were "
            "read in part, were not",
            verdict.checked,
            verdict.in_part,
        )


def _groups(work: Plan) -> list[list[_Member]]:
    """Each parameter's shards as one group, layer by layer; parameters outside the layers come first or last."""
    sections = tuple(Section)
    groups: dict[tuple[int, int, int], list[_Member]] = {}
    for file in work.files:
        numbers: dict[tuple[Section, int], int] = {}
        for entry in file.entries:
            place = entry.parameter.section, entry.parameter.layer
            number = numbers[place] = numbers.get(place, -1) + 1
            key = sections.index(place[0]), place[1], number
            groups.setdefault(key, []).append(_Member(file.rank, entry))
    return [groups[key] for key in sorted(groups)]


def _batches(group: Sequence[_Member], nbytes: int) -> Iterator[list[_Member]]:
    """Batches of as many shards as fit, so that rows which several of them need are read once."""
    batch: list[_Member] = []
    size = 0
    for member in group:
        more = page_end(member.entry.tensor.nbytes)
        if batch and size + more > nbytes:
            yield batch
            batch, size = [], 0
        batch.append(member)
        size += more
    if batch:
        yield batch


def _fill(batch: Sequence[_Member], pool: Buffer, workers: Workers, sources: SourceChecksums) -> list[int]:
    """Fill the pool with the tensors; returns where each begins."""
    places, position = [], 0
    for member in batch:
        places.append(position)
        position += page_end(member.entry.tensor.nbytes)
    jobs = lower(
        Target(0, place, member.entry.tensor, member.entry.update) for member, place in zip(batch, places, strict=True)
    )
    run_tiles(TileLog(jobs, sources), [MemoryOutput(pool)], workers, lambda _: None)
    return places


def _tensor(pool: Buffer, position: int, shape: Sequence[int], dtype: DType, framework: str) -> Any:
    numel = int(np.prod(shape, dtype=np.int64))
    if framework == "np":
        return np.ndarray(tuple(shape), dtype.numpy, pool, position)
    import torch

    kind = getattr(torch, dtype.name)
    if not numel:
        return torch.empty(tuple(shape), dtype=kind)
    return torch.frombuffer(pool, dtype=kind, count=numel, offset=position).reshape(tuple(shape))


def _copied(tensor: Any, framework: str) -> Any:
    return tensor.clone() if framework == "pt" else tensor.copy()
