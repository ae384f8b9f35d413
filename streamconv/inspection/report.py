"""The results of an inspection as values, for text, ``--json`` and the HTML page alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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
    "PartRow",
    "StatisticsRow",
    "TensorRow",
    "Vocabulary",
    "finding_of",
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
class PartRow:
    """A part of a tensor that ranks hold together: its file, the offset of its first element there, its bytes, the rank
    and the pipeline stage, None where the file's name does not say them.
    """

    file: str
    offset: int
    nbytes: int
    rank: str | None
    stage: int | None


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A stored tensor. ``offset`` is the position of its first element in its file in bytes, None if it is stored in
    several places, which are then ``parts``; ``shares`` names an earlier tensor with the same bytes. ``rank`` and
    ``stage`` are those that the file belongs to, None if it belongs to none.
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
    rank: str | None = None
    stage: int | None = None
    parts: tuple[PartRow, ...] = ()


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
