"""Plans as text, and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from streamconv.core.result import Face
from streamconv.memory.budget import format_bytes
from streamconv.planning.plan import Plan
from streamconv.report.blocks import plural
from streamconv.report.notebook import lines_html

__all__ = ["plan_dict", "plan_text"]


def plan_text(plan: Plan, *, verbose: bool = False) -> str:
    """A plan as text. ``verbose`` adds every output file."""
    return "\n".join(_plan_lines(plan, verbose))


def _plan_lines(plan: Plan, verbose: bool) -> Iterator[str]:
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
        f"in {plural(len(plan.files), 'file')} ({plural(len(plan.jobs), 'job')})"
    )
    if plan.copied:
        yield f"copied  {', '.join(plan.copied)}: byte for byte, from {_homes(plan)}"
    if plan.memory is not None:
        yield f"memory  budget {plan.memory.budget}, workable floor {format_bytes(plan.memory.floor_nbytes)}"
    for dropped in plan.dropped:
        yield f"left    {dropped.name} ({format_bytes(dropped.nbytes)}): {dropped.reason}"
    for warning in plan.warnings:
        yield f"warning {warning}"
    if verbose:
        for file in plan.files:
            yield f"file    {file.path}: {len(file.entries)} tensors, {format_bytes(file.layout.nbytes)}"


def plan_dict(plan: Plan) -> dict[str, Any]:
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
        "memory": None
        if plan.memory is None
        else {"budget_nbytes": plan.memory.budget.nbytes, "floor_nbytes": plan.memory.floor_nbytes},
    }


def _homes(plan: Plan) -> str:
    return ", ".join(dict.fromkeys(str(path.parent) for path in plan.copied.values()))


def _line(plan: Plan) -> str:
    layout = plan.target_layout
    result = plan.target_format if layout.tp * layout.pp == 1 else f"{plan.target_format}, {layout}"
    files = f"{plural(len(plan.files), 'file')}, {format_bytes(plan.write_nbytes)}"
    return f"{plan.family}, {plan.source_layout} to {result}: {files}"


Plan.face = Face(_line, plan_text, plan_dict, lambda plan: lines_html(plan_text(plan)))
