"""Plans and reports as text, and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from streamconv.memory.budget import format_bytes

if TYPE_CHECKING:
    from streamconv.execution.disk_speed import DiskSpeed, Prediction
    from streamconv.execution.fit import Fit
    from streamconv.execution.run import Report
    from streamconv.execution.settings import EngineSettings
    from streamconv.planning.plan import Plan

__all__ = ["plan_dict", "plan_text", "report_dict", "report_text", "speed_dict", "speed_text"]


def plan_text(plan: Plan, fit: Fit | None = None, *, verbose: bool = False) -> str:
    """A plan as text. ``verbose`` adds every output file."""
    return "\n".join(_plan_lines(plan, fit, verbose))


def _plan_lines(plan: Plan, fit: Fit | None, verbose: bool) -> Iterator[str]:
    target, *choices = plan.choices
    yield f"to      {target.what.removeprefix('target ')}: {target.evidence}"
    yield f"source  {plan.source}"
    iteration = "" if plan.iteration is None else f", iteration {plan.iteration}"
    yield f"        {plan.source_format}: {plan.family}, {plan.source_layout}{iteration}"
    for fact in plan.facts:
        yield f"        {fact.what}: {fact.evidence}"
    for position, choice in enumerate((*choices, *plan.notes)):
        yield f"{'        ' if position else 'target  '}{choice.what}: {choice.evidence}"
    if plan.dtype is not None:
        yield f"        cast to {plan.dtype}: as asked"
    cover = plan.coverage
    yield (
        f"proved  {cover.consumed} source tensors read once, {cover.left_out} left out by name below, "
        f"{cover.written} target tensors written once"
    )
    yield f"        {len(plan.replicas)} replicated parameters compared over ranks, policy {plan.replicated_policy}"
    yield (
        f"bytes   read {format_bytes(plan.read_nbytes)}, write {format_bytes(plan.write_nbytes)} "
        f"in {len(plan.files)} files ({len(plan.jobs)} jobs)"
    )
    if plan.copied:
        yield f"copied  {', '.join(plan.copied)}: byte for byte, from --tokenizer"
    if fit is not None:
        yield f"memory  budget {fit.budget}, workable floor {format_bytes(fit.floor_nbytes)}"
    for dropped in plan.dropped:
        yield f"left    {dropped.name} ({format_bytes(dropped.nbytes)}): {dropped.reason}"
    for warning in plan.warnings:
        yield f"warning {warning}"
    if verbose:
        for file in plan.files:
            yield f"file    {file.path}: {len(file.entries)} tensors, {format_bytes(file.layout.nbytes)}"


def plan_dict(plan: Plan, fit: Fit | None = None) -> dict[str, Any]:
    """A plan as plain data; sizes in bytes."""
    return {
        "source": {
            "path": str(plan.source),
            "format": plan.source_format,
            "family": plan.family,
            "layout": plan.source_layout,
            "facts": [{"what": fact.what, "evidence": fact.evidence} for fact in plan.facts],
        },
        "target": {
            "format": plan.target_format,
            "tp": plan.target_layout.tp,
            "pp": plan.target_layout.pp,
            "pp_layers": list(plan.target_layout.stages),
            "vpp": plan.target_layout.vpp,
            "dtype": None if plan.dtype is None else plan.dtype.name,
            "choices": [{"what": choice.what, "evidence": choice.evidence} for choice in plan.choices],
            "notes": [{"what": note.what, "evidence": note.evidence} for note in plan.notes],
        },
        "iteration": plan.iteration,
        "coverage": {
            "consumed": plan.coverage.consumed,
            "left_out": plan.coverage.left_out,
            "written": plan.coverage.written,
        },
        "dropped": [{"name": d.name, "nbytes": d.nbytes, "reason": d.reason} for d in plan.dropped],
        "replicated": {"parameters": len(plan.replicas), "policy": plan.replicated_policy},
        "warnings": list(plan.warnings),
        "read_nbytes": plan.read_nbytes,
        "write_nbytes": plan.write_nbytes,
        "files": [{"path": f.path, "tensors": len(f.entries), "nbytes": f.layout.nbytes} for f in plan.files],
        "copied": sorted(plan.copied),
        "memory": None if fit is None else {"budget_nbytes": fit.budget.nbytes, "floor_nbytes": fit.floor_nbytes},
    }


def report_text(report: Report) -> str:
    """A finished conversion as text."""
    plan = report.plan
    lines = [
        f"wrote   {report.destination or 'nowhere (--to null)'}: {len(plan.files)} files, "
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
    count = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    return f"{count}, blocks of {format_bytes(settings.block)}, --io {settings.io}, --engine {settings.engine}"


def report_dict(report: Report) -> dict[str, Any]:
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


def speed_text(speed: DiskSpeed, prediction: Prediction | None, planning: float) -> str:
    """A measured disk, and the predicted time of a conversion on it, as text. ``planning`` is in seconds."""
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


def speed_dict(speed: DiskSpeed, prediction: Prediction | None, planning: float) -> dict[str, Any]:
    """A measured disk and a prediction as plain data, in bytes, bytes per second and seconds."""
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
