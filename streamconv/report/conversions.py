"""Finished conversions as text, and as plain data."""

from __future__ import annotations

from typing import Any

from streamconv.core.result import Face
from streamconv.execution.run import ConversionReport
from streamconv.execution.settings import EngineSettings
from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import plural
from streamconv.report.notebook import lines_html
from streamconv.report.plans import plan_dict

__all__ = ["conversion_dict", "conversion_text", "how_text"]


def conversion_text(report: ConversionReport) -> str:
    """A finished conversion as text."""
    plan = report.plan
    if report.was_done:
        return (
            f"wrote   nothing: {report.destination} holds the whole result of this conversion already\n"
            f"        (its files, their sizes and times were compared, not their values: streamconv verify does that)"
        )
    lines = [
        f"wrote   {report.destination or 'nowhere (discarded)'}: {plural(len(plan.files), 'file')}, "
        f"{format_bytes(report.write_nbytes)}",
        f"        {plan.target_words}",
        f"from    {plan.source}: {plan.family}, {plan.source_layout}",
        *(f"note    {note.what}: {note.evidence}" for note in plan.notes),
        f"speed   {report.seconds:.2f} s, {format_bytes(report.nbytes_per_second)}/s written, sync included",
        f"        {how_text(report.fit.settings)}",
        f"memory  peak {format_bytes(report.peak_nbytes)} of {report.budget}",
        f"checked {report.records_checked} source records by CRC-32"
        + (f"; {report.records_in_part} read in part, unchecked" if report.records_in_part else ""),
    ]
    if report.resumed_nbytes:
        lines.insert(1, f"        {format_bytes(report.resumed_nbytes)} of it by a run that ended early")
    if report.records_without_crc:
        lines.append(f"warning {report.records_without_crc} source records have no CRC-32 to be checked against")
    for drift in report.drifts:
        ranks = ", ".join(map(str, drift.ranks))
        where = f"from {drift.original}" if drift.original else f"on rank {ranks} from rank 0"
        wrote = drift.original or f"the {plan.replicated_policy}"
        lines.append(
            f"warning {drift.name} differs {where}: {drift.elements} elements, "
            f"by at most {drift.largest:g}; wrote {wrote}"
        )
    return "\n".join(lines)


def how_text(settings: EngineSettings) -> str:
    """How an engine ran, in words."""
    count = plural(settings.threads, "thread")
    return f"{count}, blocks of {format_bytes(settings.block)}, io {settings.io}, engine {settings.engine}"


def conversion_dict(report: ConversionReport) -> dict[str, Any]:
    """A finished conversion as plain data; sizes in bytes, times in seconds."""
    return {
        "destination": None if report.destination is None else str(report.destination),
        "seconds": report.seconds,
        "read_nbytes": report.read_nbytes,
        "write_nbytes": report.write_nbytes,
        "resumed_nbytes": report.resumed_nbytes,
        "was_done": report.was_done,
        "nbytes_per_second": report.nbytes_per_second,
        "peak_nbytes": report.peak_nbytes,
        "budget_nbytes": report.budget.nbytes,
        "threads": report.fit.threads,
        "block_nbytes": report.fit.block,
        "io": report.fit.io,
        "engine": report.fit.engine,
        "records": {
            "checked": report.records_checked,
            "in_part": report.records_in_part,
            "without_crc": report.records_without_crc,
        },
        "drift": [
            {"name": d.name, "ranks": list(d.ranks), "elements": d.elements, "largest": d.largest}
            for d in report.drifts
        ],
        "plan": plan_dict(report.plan),
    }


def _conversion_line(report: ConversionReport) -> str:
    if report.was_done:
        return f"{report.plan.target_format}, done already: {report.destination}"
    how = f"{report.seconds:.2f} s, peak {format_bytes(report.peak_nbytes)}"
    where = report.destination or "nowhere"
    return f"{report.plan.target_format}, {format_bytes(report.write_nbytes)} in {how}: {where}"


ConversionReport.face = Face(
    _conversion_line, conversion_text, conversion_dict, lambda report: lines_html(conversion_text(report))
)
