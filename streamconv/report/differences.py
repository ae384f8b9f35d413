"""What ``diff`` and ``verify`` found, as a document and as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import Block, Pairs, Remarks, Table
from streamconv.verification.compare import Comparison, TensorPlace, ValueDifference
from streamconv.verification.sides import Side
from streamconv.verification.verify import Verification

__all__ = ["comparison_blocks", "comparison_dict", "verification_blocks", "verification_dict"]

_MOST_ROWS = 40


def comparison_blocks(found: Comparison) -> list[Block]:
    """The blocks of ``diff``."""
    return list(_comparison(found, "equal" if found.is_equal else "different"))


def verification_blocks(found: Verification) -> list[Block]:
    """The blocks of ``verify``."""
    return list(_verification(found))


def _verification(found: Verification) -> Iterator[Block]:
    report, checked = found.report, found.report.checked or {}
    rows = [("path", report.path), ("is", report.what), ("size", format_bytes(report.nbytes))]
    words = f"{checked.get('records', 0)} records, {format_bytes(checked.get('nbytes', 0))}"
    if checked.get("without_crc"):
        words += f"; {checked['without_crc']} records have none"
    rows.append(("CRC-32", words))
    verdict = {0: "whole", 6: "not whole", 7: "whole"}[found.exit_code]
    yield Pairs(f"container: {verdict}", tuple(rows))
    if report.findings:
        yield Remarks("findings", tuple((f.severity, f.what, f.where, f.remedy) for f in report.findings))
    if found.drifts:
        copies = [
            (drift.name, f"ranks or copies {', '.join(map(str, drift.ranks))} differ from the first in "
             f"{drift.elements} elements, by at most {drift.largest:g}")
            for drift in found.drifts
        ]  # fmt: skip
        yield Pairs("copies that should be equal", tuple(copies))
    if found.comparison is not None:
        faithful = found.comparison.is_faithful
        yield from _comparison(found.comparison, "the values are the same" if faithful else "different")


def _comparison(found: Comparison, verdict: str) -> Iterator[Block]:
    rows = [("a", _side(found.a)), ("b", _side(found.b))]
    rows.append(("compared", f"{found.compared} tensors, {format_bytes(found.nbytes)}, by {found.a.names} names"))
    notes = [*found.a.notes, *(note for note in found.b.notes if note not in found.a.notes), *found.notes]
    yield Pairs(verdict, (*rows, *(("note", note) for note in notes)))
    for title, names in (("only in a", found.only_a), ("only in b", found.only_b)):
        if names:
            yield Table(_titled(title, names), ("tensor",), tuple((name,) for name in names[:_MOST_ROWS]))
    for title, pairs in (("shapes differ", found.shapes), ("dtypes differ", found.dtypes)):
        if pairs:
            both = tuple((pair.name, pair.a, pair.b) for pair in pairs[:_MOST_ROWS])
            yield Table(_titled(title, pairs), ("tensor", "a", "b"), both)
    if found.values:
        headings = ("tensor", ">elements", ">of", ">max abs", ">max rel", "first", ">a", ">b")
        shown = tuple(_value(difference) for difference in found.values[:_MOST_ROWS])
        yield Table(_titled("values differ", found.values), headings, shown)
        yield Table("where first", ("tensor", "", "file", ">byte"), tuple(_places(found.values[:_MOST_ROWS])))


def _titled(title: str, items: Sequence[object]) -> str:
    shown = f", the first {_MOST_ROWS}" if len(items) > _MOST_ROWS else ""
    return f"{title}: {len(items)}{shown}"


def _side(side: Side) -> str:
    return f"{side.path} ({side.what})"


def _value(one: ValueDifference) -> tuple[str, ...]:
    numbers = (f"{one.elements:,}", f"{one.numel:,}", f"{one.max_abs:.4g}", f"{one.max_rel:.4g}")
    return (one.name, *numbers, f"[{', '.join(map(str, one.first))}]", _number(one.a), _number(one.b))


def _number(place: TensorPlace) -> str:
    return "-" if place.value is None else f"{place.value:.9g}"


def _places(found: Sequence[ValueDifference]) -> Iterator[tuple[str, ...]]:
    for one in found:
        yield one.name, "a", one.a.file, str(one.a.offset)
        yield "", "b", one.b.file, str(one.b.offset)


def comparison_dict(found: Comparison) -> dict[str, Any]:
    """What ``diff --json`` prints; a distance that is infinite is None, as JSON has no word for it."""
    return {
        "schema": "streamconv.diff/1",
        "equal": found.is_equal,
        "a": {"path": found.a.path, "what": found.a.what},
        "b": {"path": found.b.path, "what": found.b.what},
        "names": found.a.names,
        "compared": found.compared,
        "nbytes": found.nbytes,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "shapes": [{"name": one.name, "a": one.a, "b": one.b} for one in found.shapes],
        "dtypes": [{"name": one.name, "a": one.a, "b": one.b} for one in found.dtypes],
        "values": [_value_dict(one) for one in found.values],
        "notes": [*found.a.notes, *found.b.notes, *found.notes],
    }


def _value_dict(one: ValueDifference) -> dict[str, Any]:
    return {
        "name": one.name,
        "elements": one.elements,
        "numel": one.numel,
        "max_abs": _finite(one.max_abs),
        "max_rel": _finite(one.max_rel),
        "first": list(one.first),
        "a": {"value": _finite(one.a.value), "file": one.a.file, "offset": one.a.offset},
        "b": {"value": _finite(one.b.value), "file": one.b.file, "offset": one.b.offset},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def verification_dict(found: Verification) -> dict[str, Any]:
    """What ``verify --json`` prints."""
    return {
        "schema": "streamconv.verify/1",
        "exit_code": found.exit_code,
        "path": found.report.path,
        "what": found.report.what,
        "checked": found.report.checked,
        "findings": [
            {"severity": f.severity, "what": f.what, "where": f.where, "remedy": f.remedy}
            for f in found.report.findings
        ],
        "drift": [
            {"name": d.name, "ranks": list(d.ranks), "elements": d.elements, "largest": _finite(d.largest)}
            for d in found.drifts
        ],
        "comparison": None if found.comparison is None else comparison_dict(found.comparison),
    }
