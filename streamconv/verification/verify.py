"""Verify a checkpoint: that its containers are whole, and that it has the same values as another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from streamconv.core.errors import DamagedError, SourceError, UsageError
from streamconv.formats.megatron.folder import TRACKER, resolve_folder
from streamconv.formats.source import SourceOptions
from streamconv.inspection.inspect import Inspection, InspectionReport, inspect
from streamconv.inspection.integrity import check_files
from streamconv.inspection.report import Finding
from streamconv.values.replicas import Drift, compare_replicas
from streamconv.values.sweep import SweepSettings, fit_sweep
from streamconv.verification.compare import Comparison, compare
from streamconv.verification.sides import Side, open_sides

__all__ = ["Verification", "diff", "verify"]

_DIFFERENT, _BROKEN = 7, 6
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Verification:
    """The result of a verification: the report on the checkpoint, damage, copies that differ, and the comparison."""

    report: InspectionReport
    broken: list[Finding] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    comparison: Comparison | None = None

    @property
    def exit_code(self) -> int:
        """6 if the checkpoint is not whole, 7 if values differ, 0 otherwise."""
        if self.broken:
            return _BROKEN
        differs = self.comparison is not None and not self.comparison.is_faithful
        return _DIFFERENT if differs or self.drifts else 0


def verify(
    dst: str | Path,
    against: str | Path | None = None,
    options: SourceOptions | None = None,
    *,
    replicated: str = "first",
    vocab_size: int | None = None,
    max_ram: str = "auto",
    io: str = "direct",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Verify a checkpoint.

    Containers first: every record's CRC-32, headers, indexes, and that no rank, layer or shard is missing. Then, if
    ``against`` is given and the checkpoint is whole, both sides are opened anew and every element is compared under
    canonical names; where dtypes differ, the other side's value is first cast as by a conversion. Copies inside the
    checkpoint (replicated parameters, a tied head) must be equal.

    Args:
        dst: the checkpoint to verify.
        against: the checkpoint that it was made from, of any format.
        options: the user's options for ``against`` (the number of heads is that of both), or for ``dst`` alone.
        replicated: which copy of ``against``'s replicated parameters is compared, ``first`` or ``mean``.
        vocab_size: true rows of the vocabulary; None takes the number that a side records.
        max_ram: the memory budget.
        io: how to read.
        jobs: threads.
        progress: called with (bytes done, bytes in all) of the pass that runs.

    Raises:
        SourceError: a side is not there or not a checkpoint.
        DamagedError: ``dst`` is a single file that cannot be opened, or ``against`` is broken.
        MemoryBudgetError: the budget is too small.
    """
    options = options or SourceOptions()
    own = options if against is None else replace(options, tag=None, qkv_layout=None)
    report = inspect(dst, Inspection(check=True, max_ram=max_ram, io=io, jobs=jobs, source=own), progress)
    if own.tag is None:
        report.findings += _root_faults(Path(dst), report)
    result = Verification(report, [finding for finding in report.findings if finding.exit_code == _BROKEN])
    if against is None or result.broken:
        return result
    source, made = _with_vocabulary(open_sides(Path(against), Path(dst), options, replicated, own), vocab_size)
    settings = fit_sweep(max_ram, io, jobs, sides=2)
    result.drifts = compare_replicas(made.replicas, "first", io, settings.block)
    result.comparison = compare(source, made, settings, cast=True, progress=progress)
    _check_source(source, result.comparison, settings)
    return result


def _root_faults(dst: Path, report: InspectionReport) -> list[Finding]:
    """A finding if frameworks cannot find the checkpoint of a root: no file names it, or the named one is missing."""
    if report.kind != "folder" or (dst / "latest").is_file():
        return []
    remedy = "copy it from where the checkpoint was written"
    if not (dst / TRACKER).is_file():
        what = f"there is no `latest` and no {TRACKER} to name {Path(report.path).name}"
        return [] if Path(report.path) == dst else [Finding("damage", what, str(dst), remedy, _BROKEN)]
    try:
        resolve_folder(dst, None)
    except SourceError as error:
        return [Finding("damage", f"{TRACKER}: {error.what}", str(dst), remedy, _BROKEN)]
    except DamagedError:
        pass  # the inspection has reported it
    return []


def _with_vocabulary(sides: tuple[Side, Side], vocab_size: int | None) -> tuple[Side, Side]:
    """The sides with the user's true size of the vocabulary, which not every format records."""
    if vocab_size is not None:
        if vocab_size < 1:
            raise UsageError(f"--vocab-size {vocab_size}: must be at least 1")
        for side in sides:
            side.vocab_size = vocab_size
    return sides


def _check_source(source: Side, comparison: Comparison, settings: SweepSettings) -> None:
    """Raise if values differ because the source is broken: shards that were read in parts have not been compared with
    their CRC-32 yet.
    """
    tensors = [source.tensors[difference.name] for difference in comparison.values]
    paths = {view.storage.path for tensor in tensors for piece in tensor.pieces for view in piece.views}
    for finding in check_files(sorted(paths), settings).findings[:1]:
        raise DamagedError(finding.what, where=finding.where, remedy=finding.remedy)


def diff(
    a: str | Path,
    b: str | Path,
    options: SourceOptions | None = None,
    *,
    vocab_size: int | None = None,
    max_ram: str = "auto",
    io: str = "direct",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """The differences between two checkpoints, under canonical names if both are translated models, else under stored
    names. Where dtypes differ, values are compared as numbers.

    Args:
        a: a checkpoint file or folder.
        b: another.
        options: the user's options for both.
        vocab_size: true rows of the vocabulary; None takes the number that a side records.
        max_ram: the memory budget.
        io: how to read.
        jobs: threads.
        progress: called with (bytes done, bytes in all).

    Raises:
        SourceError, DamagedError: a side is not there, not a checkpoint, or broken.
        MemoryBudgetError: the budget is too small.
    """
    sides = _with_vocabulary(open_sides(Path(a), Path(b), options or SourceOptions()), vocab_size)
    return compare(*sides, fit_sweep(max_ram, io, jobs, sides=2), cast=False, progress=progress)
