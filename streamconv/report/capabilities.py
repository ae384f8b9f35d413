"""The capability table in words: a block for each family, and one table for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from streamconv.core.result import Face
from streamconv.planning.capabilities import Capability, FamilyTable
from streamconv.report.notebook import text_html

__all__ = ["capability_dict", "capability_markdown", "capability_text"]


def capability_text(table: FamilyTable) -> str:
    """The table for a terminal: a line with the targets of each source, and a line for each reason of refusals."""
    return "\n".join(_lines(table.cells))


def _lines(cells: Sequence[Capability]) -> Iterator[str]:
    for family in dict.fromkeys(cell.family for cell in cells):
        mine = [cell for cell in cells if cell.family is family]
        yield f"{family.title} ({family.name})"
        for source in dict.fromkeys(cell.source for cell in mine):
            works = [cell.target.name for cell in mine if cell.source is source and cell.refusal is None]
            if works:
                yield f"  {source.name:<16} to {', '.join(works)}"
        for reason, names in _refusals(mine).items():
            yield f"  not {', '.join(names)}: {reason}"


def _refusals(cells: Sequence[Capability]) -> dict[str, list[str]]:
    """The sources and targets that are refused, by reason."""
    by_reason: dict[str, list[str]] = {}
    for cell in cells:
        for way, side in (("from", cell.source), ("to", cell.target)):
            reason = side.refusal(cell.family)
            if reason is not None and f"{way} {side.name}" not in by_reason.setdefault(reason, []):
                by_reason[reason].append(f"{way} {side.name}")
    return by_reason


def capability_markdown(table: FamilyTable) -> str:
    """The table for the documentation: a row for each family and source, a column for each target."""
    cells = table.cells
    targets = list(dict.fromkeys(cell.target.name for cell in cells))
    reasons = list(dict.fromkeys(cell.refusal for cell in cells if cell.refusal is not None))
    lines = [
        f"| family | from | {' | '.join(f'to {target}' for target in targets)} |",
        f"|---|---|{'---|' * len(targets)}",
    ]
    rows: dict[tuple[str, str], list[Capability]] = {}
    for cell in cells:
        rows.setdefault((cell.family.title, cell.source.name), []).append(cell)
    for (title, source), row in rows.items():
        marks = ["yes" if cell.refusal is None else f"no ({reasons.index(cell.refusal) + 1})" for cell in row]
        lines.append(f"| {title} | {source} | {' | '.join(marks)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    return "\n".join(lines)


def capability_dict(table: FamilyTable) -> dict[str, Any]:
    """The table as plain data."""
    rows = (
        {"family": c.family.name, "source": c.source.name, "target": c.target.name, "refusal": c.refusal}
        for c in table.cells
    )
    return {"conversions": list(rows)}


def _line(table: FamilyTable) -> str:
    families = {cell.family.name for cell in table.cells}
    return f"{len(families)} families, {sum(cell.refusal is None for cell in table.cells)} conversions"


FamilyTable.face = Face(_line, capability_text, capability_dict, lambda table: text_html(capability_text(table)))
