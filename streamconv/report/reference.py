"""What the formats' own readers said of a checkpoint, as a document and as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from streamconv.core.result import Face
from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import MOST_ROWS, Block, Pairs, Table, plain_text, plural, titled
from streamconv.report.notebook import blocks_html
from streamconv.verification.reference import NotAgreed, ReferenceCheck

__all__ = ["reference_blocks", "reference_dict"]


def reference_blocks(found: ReferenceCheck) -> Iterator[Block]:
    """The blocks of ``verify`` that are about the formats' own readers."""
    rows = [(reader, plural(files, "file")) for reader, files in sorted(found.files.items())]
    which = "every tensor" if found.mode == "all" else "a sample"
    words = f"{which}: {found.compared} of {plural(found.tensors, 'tensor')}, {format_bytes(found.nbytes)} of them"
    yield Pairs(f"reference: {_verdict(found)}", (*rows, ("compared", words)))
    yield from _table("the reference reads otherwise", found.different)
    yield from _table("not compared with the reference", found.refused)


def _verdict(found: ReferenceCheck) -> str:
    if found.different:
        return "different"
    if found.refused:
        return "not everything could be compared"
    return "agrees" if found.nbytes else "nothing was compared"


def _table(title: str, rows: Sequence[NotAgreed]) -> Iterator[Block]:
    if rows:
        cells = tuple((row.file, row.name or "", row.why) for row in rows[:MOST_ROWS])
        yield Table(titled(title, rows), ("file", "tensor", "why"), cells)


def reference_dict(found: ReferenceCheck) -> dict[str, Any]:
    """The data about the formats' own readers that ``verify --json`` prints."""
    return {
        "mode": found.mode,
        "files": found.files,
        "tensors": found.tensors,
        "compared": found.compared,
        "nbytes": found.nbytes,
        "different": [_entry(row) for row in found.different],
        "refused": [_entry(row) for row in found.refused],
    }


def _entry(row: NotAgreed) -> dict[str, Any]:
    return {"file": row.file, "tensor": row.name, "why": row.why}


def _line(found: ReferenceCheck) -> str:
    return f"{_verdict(found)}, {found.compared} of {found.tensors} tensors compared: {found.path}"


ReferenceCheck.face = Face(
    _line,
    lambda found: plain_text(reference_blocks(found)),
    reference_dict,
    lambda found: blocks_html(reference_blocks(found)),
)
