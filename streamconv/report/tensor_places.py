"""Tensors as lines of text: each with its place, or its places if ranks hold parts of it."""

from __future__ import annotations

from collections.abc import Iterator

from streamconv.inspection.report import InspectionReport, TensorRow
from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import Block, Table

__all__ = ["tensor_places", "tensor_words"]


def tensor_words(row: TensorRow, name: str, note: str) -> tuple[str, ...]:
    """(name, dtype, shape, size, offset, note) of a tensor as text."""
    if row.shares is not None:
        note = f"{note} same bytes as {row.shares}".strip()
    offset = "" if row.offset is None or note.startswith("x ") else str(row.offset)
    return name, row.dtype, f"[{', '.join(map(str, row.shape))}]", format_bytes(row.nbytes), offset, note


def tensor_places(report: InspectionReport) -> Iterator[Block]:
    """Each tensor with its place; one that is stored in parts with a line for each."""
    ranked = any(row.rank is not None or row.stage is not None or row.parts for row in report.tensors)
    rows: list[tuple[str, ...]] = []
    for row in report.tensors:
        name, dtype, shape, nbytes, offset, note = tensor_words(row, row.name, "")
        place = (row.file, offset, *_rank_and_stage(row.rank, row.stage, ranked=ranked))
        rows.append((name, dtype, shape, nbytes, *(place if not row.parts else ("",) * len(place)), note))
        for part in row.parts:
            where = (part.file, str(part.offset), *_rank_and_stage(part.rank, part.stage, ranked=ranked))
            rows.append(("", "", "", format_bytes(part.nbytes), *where, ""))
    ranks = ("rank", ">stage") if ranked else ()
    yield Table("tensors", ("tensor", "dtype", "shape", ">bytes", "file", ">offset", *ranks, ""), tuple(rows))


def _rank_and_stage(rank: str | None, stage: int | None, *, ranked: bool) -> tuple[str, ...]:
    return (rank or "", "" if stage is None else str(stage)) if ranked else ()
