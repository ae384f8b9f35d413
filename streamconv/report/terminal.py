"""Show a document on a terminal with rich: wrapped to its width, and in colour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from streamconv.core.text import printable
from streamconv.report.blocks import Block, Pairs, Remarks, Table

__all__ = ["show"]

_COLOURS = {"damage": "bold red", "warning": "yellow", "note": "cyan"}


def show(blocks: Iterable[Block], stream: TextIO) -> None:
    """Print a document to a terminal."""
    console = Console(file=stream, highlight=False, emoji=False)
    for number, block in enumerate(blocks):
        if number:
            console.print()
        console.print(Text(printable(block.title), style="bold"))
        if isinstance(block, Pairs):
            _pairs(console, block)
        elif isinstance(block, Table):
            _table(console, block)
        else:
            _remarks(console, block)


def _grid() -> RichTable:
    table = RichTable.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _pairs(console: Console, block: Pairs) -> None:
    table = _grid()
    for name, value in block.rows:
        table.add_row(f"  {escape(printable(name))}", escape(printable(value)))
    console.print(table)


def _table(console: Console, block: Table) -> None:
    table = RichTable(box=None, padding=(0, 1), header_style="dim", show_edge=False)
    for heading in block.headings:
        right = heading.startswith(">")
        table.add_column(heading.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for number, row in enumerate(block.rows):
        cells = [escape(printable(cell)) for cell in row]
        table.add_row(*cells, style="bold yellow" if number in block.marked else None)
    console.print(table)


def _remarks(console: Console, block: Remarks) -> None:
    table = _grid()
    for severity, what, where, remedy in block.rows:
        text = Text(printable(what))
        for word, more in (("where", where), ("remedy", remedy)):
            if more:
                text.append(f"\n{word}: {printable(more)}", style="dim")
        table.add_row(Text(f"  {severity}", style=_COLOURS.get(severity, "")), text)
    console.print(table)
