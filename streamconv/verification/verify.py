"""Verify a checkpoint: that its containers are whole, and that it has the same values as another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from streamconv.core.errors import DamagedError, SourceError
from streamconv.core.options import Given
from streamconv.core.result import Result
from streamconv.core.shown import with_flags
from streamconv.formats.megatron.folder import TRACKER, resolve_folder
from streamconv.inspection.inspect import InspectionReport, inspect
from streamconv.inspection.integrity import check_files
from streamconv.inspection.options import InspectOptions
from streamconv.inspection.report import Finding
from streamconv.values.options import ReadingOptions
from streamconv.values.replicas import Drift, compare_replicas
from streamconv.values.sweep import SweepSettings, fit_sweep
from streamconv.verification.compare import Comparison, compare
from streamconv.verification.sides import Side, open_sides

__all__ = ["Verification", "diff", "verify"]

_DIFFERENT, _BROKEN = 7, 6
Progress = Callable[[int, int], None]


@dataclass(slots=True, repr=False)
class Verification(Result):
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
    dst: Path,
    against: Path | None,
    given: Given,
    own: Given,
    reading: ReadingOptions,
    replicated: str = "first",
    progress: Progress | None = None,
) -> Verification:
    """Verify a checkpoint; see :func:`streamconv.verify`.

    Args:
        dst: the checkpoint to verify.
        against: the checkpoint that it was made from.
        given: the user's options for ``against``, or for ``dst`` alone.
        own: those for ``dst``, where it is compared; ``given`` are used where they leave it ambiguous.
        reading: how values are read.
        replicated: which copy of ``against``'s replicated parameters is compared; ``fail`` wants them equal.
        progress: called with (bytes done, bytes in all) of the pass that runs.

    Raises:
        SourceError: a side is not there or not a checkpoint.
        DamagedError: ``dst`` is a single file that cannot be opened, or ``against`` is broken.
        DifferenceError: copies in ``against`` differ, and ``replicated`` is ``fail``.
        MemoryBudgetError: the budget is too small.
    """
    # What the inspection of DST has no use for, the comparison has.
    own = given if against is None else own.forgiving(own.values)
    with own.naming_its_own():
        report = inspect(dst, own, InspectOptions(check=True), reading, progress)
    report.findings = [_with_flags(finding, own.own_flags) for finding in report.findings]
    if "tag" not in own.values:
        report.findings += _root_faults(dst, report)
    result = Verification(report, [finding for finding in report.findings if finding.exit_code == _BROKEN])
    if against is None or result.broken:
        return result
    policy = "first" if replicated == "fail" else replicated
    source, made = open_sides(against, dst, given, own, policy, otherwise=given)
    settings = fit_sweep(reading, sides=2)
    if replicated == "fail":
        compare_replicas(source.replicas, "fail", settings.io, settings.block)
    result.drifts = compare_replicas(made.replicas, "first", settings.io, settings.block)
    result.comparison = compare(source, made, settings, cast=True, progress=progress)
    _check_source(source, result.comparison, settings)
    return result


def _with_flags(finding: Finding, flags: Mapping[str, str]) -> Finding:
    return replace(finding, remedy=None if finding.remedy is None else with_flags(finding.remedy, flags))


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


def _check_source(source: Side, comparison: Comparison, settings: SweepSettings) -> None:
    """Raise if values differ because the source is broken: shards that were read in parts have not been compared with
    their CRC-32 yet.
    """
    tensors = [source.tensors[difference.name] for difference in comparison.values]
    paths = {view.storage.path for tensor in tensors for piece in tensor.pieces for view in piece.views}
    for finding in check_files(sorted(paths), settings).findings[:1]:
        raise DamagedError(finding.what, where=finding.where, remedy=finding.remedy)


def diff(
    a: Path, b: Path, given_a: Given, given_b: Given, reading: ReadingOptions, progress: Progress | None = None
) -> Comparison:
    """The differences between two checkpoints; see :func:`streamconv.diff`.

    Args:
        a: a checkpoint file or folder.
        b: another.
        given_a: the user's options for ``a``.
        given_b: those for ``b``.
        reading: how values are read.
        progress: called with (bytes done, bytes in all).

    Raises:
        SourceError, DamagedError: a side is not there, not a checkpoint, or broken.
        MemoryBudgetError: the budget is too small.
    """
    sides = open_sides(a, b, given_a, given_b)
    return compare(*sides, fit_sweep(reading, sides=2), cast=False, progress=progress)
