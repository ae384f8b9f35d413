"""The results of an inspection as values, for text, ``--json`` and the HTML page alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError, StorageError, StreamconvError, UnsafeError
from streamconv.core.result import Result
from streamconv.values.statistics import Statistics

__all__ = [
    "SCHEMA",
    "UNSAFE",
    "Cell",
    "Evidence",
    "FileRow",
    "Finding",
    "GlobalRow",
    "InspectionReport",
    "ModelFacts",
    "OptimizerFacts",
    "ParallelFacts",
    "StatisticsRow",
    "TensorRow",
    "Vocabulary",
    "finding_of",
    "report_dict",
]

SCHEMA = "streamconv.inspect/1"
DIFFERENT, BROKEN = 7, 6
UNSAFE = "unsafe: "
"""How the finding of a pickle begins that names what could run code."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the user should know: ``note``, ``warning`` or ``damage``, with its place and a remedy.

    ``exit_code`` is the exit code under ``--strict``: 6 for broken or missing files, 7 for values, 0 for a note.
    """

    severity: str
    what: str
    where: str | None = None
    remedy: str | None = None
    exit_code: int = 0


def finding_of(error: StreamconvError, severity: str | None = None) -> Finding:
    """An error as a finding.

    Raises:
        StorageError: it is one; what the system refused says nothing of a checkpoint.
    """
    if isinstance(error, StorageError):
        raise error
    broken = isinstance(error, DamagedError)
    kind = severity or ("damage" if broken else "note")
    what = f"{UNSAFE}{error.what}" if isinstance(error, UnsafeError) else error.what
    return Finding(kind, what, error.where, error.remedy, BROKEN if kind == "damage" else 0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A fact, and the evidence for it."""

    what: str
    evidence: str


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A stored tensor. ``offset`` is the position of its first element in its file in bytes, None if it is stored in
    several places; ``shares`` names an earlier tensor with the same bytes.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int | None
    layer: int | None = None
    parameter: str | None = None
    shares: str | None = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The numbers of stored rows, true rows (None if unknown) and padding rows."""

    stored: int | None = None
    true: int | None = None
    padding: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's sizes, None if unknown."""

    family: str | None = None
    iteration: int | None = None
    num_layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    kv_groups: int | None = None
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    positions: int | None = None
    parameters: int | None = None
    parameters_per_layer: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """The files of one pipeline stage and tensor-parallel rank; in a target, the source files that it needs."""

    stage: int
    rank: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParallelFacts:
    """Parallel sizes, the layers on each stage, and which file belongs to which rank and stage."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    stages: tuple[tuple[int, ...], ...] | None = None
    grid: tuple[Cell, ...] = ()


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """The optimizer state beside the parameters."""

    present: bool
    files: int
    nbytes: int
    what: str


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file of a checkpoint."""

    path: str
    nbytes: int
    kind: str
    tensors: int


@dataclass(frozen=True, slots=True)
class GlobalRow:
    """A class or function that pickles name: plain torch's verdict, the number of calls, and the files."""

    name: str
    verdict: str
    called: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatisticsRow:
    """A tensor's statistics, and in words what is unusual about them."""

    name: str
    layer: int | None
    parameter: str | None
    dtype: str
    shape: tuple[int, ...]
    values: Statistics
    flags: tuple[str, ...] = ()


@dataclass(slots=True, repr=False)
class InspectionReport(Result):
    """The whole report. ``values`` are a file's values other than tensors, by dotted path. ``lists_tensors`` says that
    the tensors were asked for, and so are shown one by one.
    """

    path: str
    kind: str
    nbytes: int
    what: str
    evidence: list[Evidence] = field(default_factory=list)
    model: ModelFacts | None = None
    parallel: ParallelFacts | None = None
    target: ParallelFacts | None = None
    optimizer: OptimizerFacts | None = None
    files: list[FileRow] = field(default_factory=list)
    tensors: list[TensorRow] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] | None = None
    storage: dict[str, int] | None = None
    globals: list[GlobalRow] = field(default_factory=list)
    statistics: list[StatisticsRow] | None = None
    checked: dict[str, int] | None = None
    findings: list[Finding] = field(default_factory=list)
    lists_tensors: bool = False

    def dtypes(self) -> dict[str, dict[str, int]]:
        """Tensors, elements and bytes by dtype; the largest first."""
        totals: dict[str, dict[str, int]] = {}
        for row in self.tensors:
            entry = totals.setdefault(row.dtype, {"tensors": 0, "elements": 0, "nbytes": 0})
            entry["tensors"] += 1
            entry["elements"] += math.prod(row.shape)
            entry["nbytes"] += row.nbytes
        return dict(sorted(totals.items(), key=lambda pair: -pair[1]["nbytes"]))

    @property
    def folder(self) -> Path:
        """The folder that the paths of ``files`` are below."""
        return Path(self.path) if self.kind == "folder" else Path(self.path).parent

    @property
    def exit_code(self) -> int:
        """The exit code under ``--strict``: that of the gravest finding."""
        codes = {finding.exit_code for finding in self.findings}
        return next((code for code in (BROKEN, DIFFERENT) if code in codes), 0)


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
