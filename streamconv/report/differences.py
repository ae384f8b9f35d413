"""The results of ``diff`` and ``verify``, as a document and as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import streamconv.report.inspection  # noqa: F401 - gives the report in a verification its face
from streamconv.core.result import Face
from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import MOST_ROWS as _MOST_ROWS
from streamconv.report.blocks import Block, Pairs, Remarks, Table, plain_text
from streamconv.report.blocks import titled as _titled
from streamconv.report.digests import digest_comparison_blocks, digest_comparison_dict
from streamconv.report.notebook import blocks_html
from streamconv.report.reference import reference_blocks, reference_dict
from streamconv.verification.comparison import Comparison, TensorPlace, ValueDifference
from streamconv.verification.side import Side
from streamconv.verification.verify import Verification

__all__ = ["comparison_blocks", "comparison_dict", "verification_blocks", "verification_dict"]


def comparison_blocks(found: Comparison) -> list[Block]:
    """The blocks of ``diff``."""
    return list(_comparison(found, _verdict(found, "equal", found.is_equal)))


def verification_blocks(found: Verification) -> list[Block]:
    """The blocks of ``verify``."""
    return list(_verification(found))


def _verification(verification: Verification) -> Iterator[Block]:
    report, checked = verification.report, verification.report.checked or {}
    rows = [("path", report.path), ("is", report.what), ("size", format_bytes(report.nbytes))]
    words = f"{checked.get('records', 0)} records, {format_bytes(checked.get('nbytes', 0))}"
    if checked.get("without_crc"):
        words += f"; {checked['without_crc']} records have none"
    rows.append(("CRC-32", words))
    yield Pairs(f"container: {'not whole' if verification.broken else 'whole'}", tuple(rows))
    if report.findings:
        yield Remarks("findings", tuple((f.severity, f.what, f.where, f.remedy) for f in report.findings))
    if verification.reference is not None:
        yield from reference_blocks(verification.reference)
    if verification.drifts:
        copies = [
            (drift.name, f"ranks or copies {', '.join(map(str, drift.ranks))} differ from the first in "
             f"{drift.elements} elements, by at most {drift.largest:g}")
            for drift in verification.drifts
        ]  # fmt: skip
        yield Pairs("copies that should be equal", tuple(copies))
    if verification.comparison is not None:
        found = verification.comparison
        yield from _comparison(found, _verdict(found, "the values are the same", found.is_faithful))
    if verification.digests is not None:
        yield from digest_comparison_blocks(verification.digests)


def _verdict(found: Comparison, equal: str, is_equal: bool) -> str:
    """The verdict in words: one of equality speaks of what was compared."""
    if is_equal:
        compared = {"canonical": "the parameters are ", "own": "the model's tensors are "}.get(found.a.names, "")
        return f"{compared}{equal}" if equal == "equal" else equal
    if found.rounded is not None:
        return up_to_cast(found)
    if found.differs or (found.dtypes and equal == "equal"):
        return "different"
    return "not all was compared" if found.nbytes else "nothing was compared"


def up_to_cast(found: Comparison) -> str:
    """That two checkpoints are equal up to a cast, in words."""
    narrow, wide = ("b", "a") if found.rounded == "b" else ("a", "b")
    types = sorted({difference.b if narrow == "b" else difference.a for difference in found.dtypes})
    return f"equal up to a cast: {narrow} has the values of {wide}, rounded to {' and '.join(types)}"


def _comparison(result: Comparison, verdict: str) -> Iterator[Block]:
    rows = [("a", _side(result.a)), ("b", _side(result.b))]
    rows.append(("compared", f"{result.compared} tensors, {format_bytes(result.nbytes)}, by {result.a.names} names"))
    notes = [*result.a.notes, *(note for note in result.b.notes if note not in result.a.notes), *result.notes]
    yield Pairs(verdict, (*rows, *(("note", note) for note in notes)))
    left_out = result.not_compared
    if left_out:
        reasons = tuple((each.name, each.why) for each in left_out[:_MOST_ROWS])
        yield Table(_titled("not compared", left_out), ("what", "why"), reasons)
    for title, names in (("only in a", result.only_a), ("only in b", result.only_b)):
        if names:
            yield Table(_titled(title, names), ("tensor",), tuple((name,) for name in names[:_MOST_ROWS]))
    for title, pairs in (("shapes differ", result.shapes), ("dtypes differ", result.dtypes)):
        if pairs:
            both = tuple((pair.name, pair.a, pair.b) for pair in pairs[:_MOST_ROWS])
            yield Table(_titled(title, pairs), ("tensor", "a", "b"), both)
    if result.values:
        headings = ("tensor", ">elements", ">of", ">max abs", ">max rel", "first", ">a", ">b")
        shown = tuple(_value(difference) for difference in result.values[:_MOST_ROWS])
        yield Table(_titled("values differ", result.values), headings, shown)
        yield Table("where first", ("tensor", "", "file", ">byte"), tuple(_places(result.values[:_MOST_ROWS])))


def _side(side: Side) -> str:
    return f"{side.path} ({side.what})"


def _value(difference: ValueDifference) -> tuple[str, ...]:
    numbers = (
        f"{difference.elements:,}",
        f"{difference.numel:,}",
        f"{difference.max_abs:.4g}",
        f"{difference.max_rel:.4g}",
    )
    return (
        difference.name,
        *numbers,
        f"[{', '.join(map(str, difference.first))}]",
        _number(difference.a),
        _number(difference.b),
    )


def _number(place: TensorPlace) -> str:
    return "-" if place.value is None else f"{place.value:.9g}"


def _places(differences: Sequence[ValueDifference]) -> Iterator[tuple[str, ...]]:
    for difference in differences:
        yield difference.name, "a", difference.a.file, str(difference.a.offset)
        yield "", "b", difference.b.file, str(difference.b.offset)


def comparison_dict(found: Comparison) -> dict[str, Any]:
    """The data that ``diff --json`` prints; an infinite distance is None, since JSON has no infinity."""
    return {
        "schema": "streamconv.diff/1",
        "equal": found.is_equal,
        "a": {"path": found.a.path, "what": found.a.what},
        "b": {"path": found.b.path, "what": found.b.what},
        "up_to_cast": found.rounded,
        "names": found.a.names,
        "compared": found.compared,
        "nbytes": found.nbytes,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "shapes": [{"name": difference.name, "a": difference.a, "b": difference.b} for difference in found.shapes],
        "dtypes": [{"name": difference.name, "a": difference.a, "b": difference.b} for difference in found.dtypes],
        "values": [_value_dict(difference) for difference in found.values],
        "notes": [*found.a.notes, *found.b.notes, *found.notes],
        "not_compared": [
            {"name": each.name, "why": each.why, "exit_code": each.exit_code} for each in found.not_compared
        ],
    }


def _value_dict(difference: ValueDifference) -> dict[str, Any]:
    return {
        "name": difference.name,
        "elements": difference.elements,
        "numel": difference.numel,
        "max_abs": _finite(difference.max_abs),
        "max_rel": _finite(difference.max_rel),
        "first": list(difference.first),
        "a": {"value": _finite(difference.a.value), "file": difference.a.file, "offset": difference.a.offset},
        "b": {"value": _finite(difference.b.value), "file": difference.b.file, "offset": difference.b.offset},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def verification_dict(found: Verification) -> dict[str, Any]:
    """The data that ``verify --json`` prints."""
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
        "digests": None if found.digests is None else digest_comparison_dict(found.digests),
        "reference": None if found.reference is None else reference_dict(found.reference),
    }


def _comparison_line(found: Comparison) -> str:
    verdict = "the same values" if found.is_faithful and found.dtypes else _verdict(found, "equal", found.is_equal)
    return f"{verdict}, {found.compared} tensors compared: {found.a.path} and {found.b.path}"


def _verification_line(found: Verification) -> str:
    verdict = {0: "whole", 3: "not all compared", 6: "not whole", 7: "values differ"}[found.exit_code]
    held = found.digests or found.comparison
    compared = "" if held is None else f", {held.compared} tensors compared"
    return f"{verdict}{compared}: {found.report.path}"


Comparison.face = Face(
    _comparison_line,
    lambda found: plain_text(comparison_blocks(found)),
    comparison_dict,
    lambda found: blocks_html(comparison_blocks(found)),
)
Verification.face = Face(
    _verification_line,
    lambda found: plain_text(verification_blocks(found)),
    verification_dict,
    lambda found: blocks_html(verification_blocks(found)),
)
