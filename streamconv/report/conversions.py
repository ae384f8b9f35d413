"""Finished conversions, and measured disks, as text and as plain data."""

from __future__ import annotations

from typing import Any

from streamconv.core.result import Face
from streamconv.execution.disk_speed import DiskReport
from streamconv.execution.run import ConversionReport
from streamconv.execution.settings import EngineSettings
from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import plural
from streamconv.report.notebook import lines_html
from streamconv.report.plans import plan_dict

__all__ = ["conversion_dict", "conversion_text", "disk_dict", "disk_text"]


def conversion_text(report: ConversionReport) -> str:
    """A finished conversion as text."""
    plan = report.plan
    lines = [
        f"wrote   {report.destination or 'nowhere (--to null)'}: {plural(len(plan.files), 'file')}, "
        f"{format_bytes(report.write_nbytes)}",
        f"        {plan.target_format}, {plan.target_layout}",
        f"from    {plan.source}: {plan.family}, {plan.source_layout}",
        *(f"note    {note.what}: {note.evidence}" for note in plan.notes),
        f"speed   {report.seconds:.2f} s, {format_bytes(report.nbytes_per_second)}/s written, sync included",
        f"        {_how(report.fit.settings)}",
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


def _how(settings: EngineSettings) -> str:
    count = plural(settings.threads, "thread")
    return f"{count}, blocks of {format_bytes(settings.block)}, --io {settings.io}, --engine {settings.engine}"


def conversion_dict(report: ConversionReport) -> dict[str, Any]:
    """A finished conversion as plain data; sizes in bytes, times in seconds."""
    return {
        "destination": None if report.destination is None else str(report.destination),
        "seconds": report.seconds,
        "read_nbytes": report.read_nbytes,
        "write_nbytes": report.write_nbytes,
        "resumed_nbytes": report.resumed_nbytes,
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


def disk_text(report: DiskReport) -> str:
    """A measured disk, and the predicted time of a conversion on it, as text."""
    speed, prediction, planning = report.speed, report.prediction, report.planning
    lines = [
        f"disk    {speed.folder}: {format_bytes(speed.nbytes)} three times, sync included, medians",
        f"        {_how(speed.settings)}",
        f"read    {format_bytes(speed.read)}/s",
        f"write   {format_bytes(speed.write)}/s",
        f"copy    {format_bytes(speed.copy)}/s, each byte read and written",
    ]
    if prediction is not None:
        where = "on one disk" if prediction.same_disk else "the source on another disk, taken to be as fast"
        lines.append(
            f"predict {prediction.seconds + planning:.0f} s: {format_bytes(prediction.read_nbytes)} to read, "
            f"{format_bytes(prediction.write_nbytes)} to write, {where}; planning took {planning:.1f} s of it"
        )
    return "\n".join(lines)


def disk_dict(report: DiskReport) -> dict[str, Any]:
    """A measured disk and a prediction as plain data, in bytes, bytes per second and seconds."""
    speed, prediction, planning = report.speed, report.prediction, report.planning
    return {
        "folder": str(speed.folder),
        "nbytes": speed.nbytes,
        "threads": speed.settings.threads,
        "block_nbytes": speed.settings.block,
        "io": speed.settings.io,
        "engine": speed.settings.engine,
        "read": speed.read,
        "write": speed.write,
        "copy": speed.copy,
        "prediction": None
        if prediction is None
        else {
            "seconds": prediction.seconds + planning,
            "planning_seconds": planning,
            "read_nbytes": prediction.read_nbytes,
            "write_nbytes": prediction.write_nbytes,
            "same_disk": prediction.same_disk,
        },
    }


def _conversion_line(report: ConversionReport) -> str:
    how = f"{report.seconds:.2f} s, peak {format_bytes(report.peak_nbytes)}"
    where = report.destination or "nowhere"
    return f"{report.plan.target_format}, {format_bytes(report.write_nbytes)} in {how}: {where}"


def _disk_line(report: DiskReport) -> str:
    speed = report.speed
    rates = (("read", speed.read), ("write", speed.write), ("copy", speed.copy))
    return f"{', '.join(f'{name} {format_bytes(rate)}/s' for name, rate in rates)}: {speed.folder}"


ConversionReport.face = Face(
    _conversion_line, conversion_text, conversion_dict, lambda report: lines_html(conversion_text(report))
)
DiskReport.face = Face(_disk_line, disk_text, disk_dict, lambda report: lines_html(disk_text(report)))
