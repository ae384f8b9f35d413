"""Results as HTML for a notebook. Names in a checkpoint are not trusted: all text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from streamconv.core.text import printable
from streamconv.report.blocks import Block, Pairs, Remarks, Table

__all__ = ["blocks_html", "lines_html", "text_html"]

_KEY = 8
_LEFT = 'style="text-align:left;vertical-align:top"'
_COLOURS = {"damage": "#c00", "warning": "#a60"}


def lines_html(text: str) -> str:
    """Text whose lines begin with a word of up to seven letters, or go on with the one before, as a table."""
    rows: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        word, words = line[:_KEY].strip(), line[_KEY:]
        if word or not rows:
            rows.append((word, []))
        rows[-1][1].append(words)
    body = "".join(f"<tr><th {_LEFT}>{_text(word)}</th>{_cell('<br>'.join(map(_text, w)))}</tr>" for word, w in rows)
    return f"<table>{body}</table>"


def blocks_html(blocks: Iterable[Block]) -> str:
    """A document as HTML."""
    return "".join(f"<p><b>{_text(block.title)}</b></p><table>{''.join(_rows(block))}</table>" for block in blocks)


def text_html(text: str) -> str:
    """Text as it stands."""
    return f"<pre>{'<br>'.join(map(_text, text.splitlines()))}</pre>"


def _rows(block: Block) -> Iterator[str]:
    if isinstance(block, Pairs):
        yield from (f"<tr><th {_LEFT}>{_text(name)}</th>{_cell(_text(value))}</tr>" for name, value in block.rows)
    elif isinstance(block, Table):
        headings = (_text(name.removeprefix(">")) for name in block.headings)
        yield f"<tr>{''.join(f'<th {_LEFT}>{name}</th>' for name in headings)}</tr>"
        for number, row in enumerate(block.rows):
            marked = "<b>{}</b>" if number in block.marked else "{}"
            yield f"<tr>{''.join(_cell(marked.format(_text(cell))) for cell in row)}</tr>"
    else:
        yield from _remarks(block)


def _remarks(block: Remarks) -> Iterator[str]:
    for severity, what, where, remedy in block.rows:
        more = [f"{word}: {text}" for word, text in (("where", where), ("remedy", remedy)) if text]
        colour = _COLOURS.get(severity, "inherit")
        words = "<br>".join(map(_text, (what, *more)))
        yield f'<tr><th {_LEFT}><span style="color:{colour}">{_text(severity)}</span></th>{_cell(words)}</tr>'


def _cell(html: str) -> str:
    return f"<td {_LEFT}>{html}</td>"


def _text(text: str) -> str:
    return escape(printable(text))
