"""A document made of blocks. It is shown as plain text in a pipe, and in colour on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamconv.core.text import printable

__all__ = ["MOST_ROWS", "Block", "Pairs", "Remarks", "Table", "plain_text", "plural", "titled"]

MOST_ROWS = 40
"""The most rows of a table of differences."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Names and values, one below the other."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; a column whose heading begins with ``>`` is aligned to the right. ``marked`` rows are
    highlighted.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Remarks:
    """Findings for the user: severity, what, where, remedy."""

    title: str
    rows: tuple[tuple[str, str, str | None, str | None], ...]


Block = Pairs | Table | Remarks
# Columns are aligned up to here: one name of a million characters would make every row as long.
_WIDEST = 200


def plural(number: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def titled(title: str, items: Sequence[object]) -> str:
    """The title of a table of the first :data:`MOST_ROWS` items: how many there are, and whether they are shown."""
    shown = f", the first {MOST_ROWS}" if len(items) > MOST_ROWS else ""
    return f"{title}: {len(items)}{shown}"


def plain_text(blocks: Iterable[Block]) -> str:
    """The blocks as aligned text, with nothing cut off."""
    return "\n\n".join("\n".join(map(printable, _lines(block))) for block in blocks)


def _lines(block: Block) -> list[str]:
    if isinstance(block, Pairs):
        width = min(_WIDEST, max(len(name) for name, _ in block.rows))
        return [block.title, *(f"  {name:{width}}  {value}".rstrip() for name, value in block.rows)]
    if isinstance(block, Remarks):
        lines = [block.title]
        for severity, what, where, remedy in block.rows:
            lines.append(f"  {severity:7}  {what}")
            lines += [f"           {word}: {text}" for word, text in (("where", where), ("remedy", remedy)) if text]
        return lines
    return [block.title, *_columns(block)]


def _columns(table: Table) -> list[str]:
    names = [heading.removeprefix(">") for heading in table.headings]
    rows: list[Sequence[str]] = [names, *table.rows]
    widths = [min(_WIDEST, max(len(row[column]) for row in rows)) for column in range(len(names))]
    right = [heading.startswith(">") for heading in table.headings]
    lines = []
    for number, row in enumerate(rows):
        cells = [f"{cell:>{w}}" if r else f"{cell:{w}}" for cell, w, r in zip(row, widths, right, strict=True)]
        mark = "!" if number - 1 in table.marked else " "
        lines.append(f" {mark}{'  '.join(cells)}".rstrip())
    return lines
