"""Measured disks as text, and as plain data."""

from __future__ import annotations

from typing import Any

from streamconv.core.result import Face
from streamconv.execution.disk_speed import DiskReport
from streamconv.memory.budget import format_bytes
from streamconv.report.conversions import how_text
from streamconv.report.notebook import lines_html

__all__ = ["disk_dict", "disk_text"]


def disk_text(report: DiskReport) -> str:
    """A measured disk, and the predicted time of a conversion on it, as text."""
    speed, prediction, planning = report.speed, report.prediction, report.planning
    lines = [
        f"disk    {speed.folder}: {format_bytes(speed.nbytes)} three times, sync included, medians",
        f"        {how_text(speed.settings)}",
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


def _disk_line(report: DiskReport) -> str:
    speed = report.speed
    rates = (("read", speed.read), ("write", speed.write), ("copy", speed.copy))
    return f"{', '.join(f'{name} {format_bytes(rate)}/s' for name, rate in rates)}: {speed.folder}"


DiskReport.face = Face(_disk_line, disk_text, disk_dict, lambda report: lines_html(disk_text(report)))
