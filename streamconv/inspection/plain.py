"""An inspection as plain data, as ``--json`` prints it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from streamconv.inspection.report import SCHEMA, InspectionReport, ParallelFacts, StatisticsRow

__all__ = ["report_dict"]


def report_dict(report: InspectionReport) -> dict[str, Any]:
    """A report as plain data, as docs/inspect.md describes it; sizes in bytes, offsets in bytes from the file's start.

    NaN and infinities are None, since JSON has neither.
    """
    plain = {
        "schema": SCHEMA,
        "path": report.path,
        "kind": report.kind,
        "nbytes": report.nbytes,
        "what": report.what,
        "evidence": _all(report.evidence),
        "model": None if report.model is None else asdict(report.model),
        "dtypes": report.dtypes(),
        "parallel": None if report.parallel is None else asdict(report.parallel),
        "target": None if report.target is None else _target(report.target),
        "optimizer": None if report.optimizer is None else asdict(report.optimizer),
        "files": _all(report.files),
        "tensors": _all(report.tensors),
        "values": report.values,
        "args": report.args,
        "storage": report.storage,
        "globals": _all(report.globals),
        "statistics": None if report.statistics is None else [_statistics(row) for row in report.statistics],
        "checked": report.checked,
        "findings": [
            {"severity": f.severity, "what": f.what, "where": f.where, "remedy": f.remedy} for f in report.findings
        ],
    }
    return {key: _jsonable(value) for key, value in plain.items()}


def _all(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _target(facts: ParallelFacts) -> dict[str, Any]:
    cells = [{"stage": cell.stage, "rank": cell.rank, "sources": list(cell.files)} for cell in facts.grid]
    return {"tp": facts.tp, "pp": facts.pp, "stages": facts.stages, "grid": cells}


def _statistics(row: StatisticsRow) -> dict[str, Any]:
    values = row.values
    return {
        "name": row.name,
        "layer": row.layer,
        "parameter": row.parameter,
        "dtype": row.dtype,
        "shape": row.shape,
        "numel": values.numel,
        "min": values.least,
        "max": values.most,
        "mean": values.mean,
        "std": values.std,
        "norm": values.norm,
        "zeros": values.zeros,
        "nan": values.nan,
        "inf": values.inf,
        "flags": row.flags,
    }


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_jsonable(item) for item in value]
    return value
