"""Where tensors are: the file, the offset, the rank and the pipeline stage of each, or of each of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from streamconv.core.lazy import LazyTensor
from streamconv.formats.deepspeed.names import FileKind, parse_name
from streamconv.inspection.report import InspectionReport, PartRow

__all__ = ["add_ranks", "parts_of"]


def parts_of(tensor: LazyTensor, folder: Path) -> tuple[PartRow, ...]:
    """The runs of stored bytes that a tensor is made of, in its own order; runs that follow one another are one."""
    parts: list[PartRow] = []
    for file, offset, nbytes in _runs(tensor, folder):
        last = parts[-1] if parts else None
        if last is not None and (last.file, last.offset + last.nbytes) == (file, offset):
            parts[-1] = replace(last, nbytes=last.nbytes + nbytes)
        else:
            parts.append(PartRow(file, offset, nbytes, *_rank(file)))
    return tuple(parts)


def _runs(tensor: LazyTensor, folder: Path) -> Iterator[tuple[str, int, int]]:
    """(file, offset, bytes) of each piece."""
    for piece in sorted(tensor.pieces, key=lambda piece: piece.start):
        for view in piece.views:
            path = view.storage.path
            first, nbytes = view.span(piece.shape)
            name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
            yield name, view.storage.offset + first, nbytes


def _rank(file: str) -> tuple[str | None, int | None]:
    """The rank and the stage of one of DeepSpeed's files with a model of its own, whose model-parallel ranks are
    pipeline stages.
    """
    parsed = parse_name(file.rpartition("/")[2])
    if parsed is None:
        return None, None
    if parsed.kind in (FileKind.OPTIMIZER, FileKind.ZERO3):
        return f"data {parsed.first}", parsed.second
    return None, parsed.first if parsed.kind is FileKind.RANK else None


def add_ranks(report: InspectionReport) -> None:
    """Give each tensor that has one place the rank and the stage that its file belongs to."""
    cells = report.parallel.grid if report.parallel is not None else ()
    known = {file: (str(cell.rank), cell.stage) for cell in reversed(cells) for file in cell.files}
    for number, row in enumerate(report.tensors):
        rank, stage = known.get(row.file) or _rank(row.file)
        if not row.parts and row.rank is None and (rank, stage) != (None, None):
            report.tensors[number] = replace(row, rank=rank, stage=stage)
