"""Verify a checkpoint: that its containers are whole, and that it has the same values as another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from streamconv.core.errors import DamagedError, SourceError
from streamconv.core.options import Given
from streamconv.core.result import Result
from streamconv.core.shown import with_flags
from streamconv.formats.common.faults import listed
from streamconv.formats.megatron.folder import TRACKER, resolve_folder
from streamconv.inspection.inspect import InspectionReport, inspect
from streamconv.inspection.options import InspectOptions
from streamconv.inspection.report import Finding
from streamconv.inspection.stored import files_of_tensors
from streamconv.values.options import ReadingOptions
from streamconv.values.replicas import Drift, compare_replicas
from streamconv.values.sweep import fit_sweep
from streamconv.verification.against_digests import DigestComparison, compare_with_digests
from streamconv.verification.compare import compare
from streamconv.verification.comparison import Comparison
from streamconv.verification.digests import is_digests
from streamconv.verification.masters import faults_of_masters
from streamconv.verification.reference import ReferenceCheck, check_reference, fit_reference
from streamconv.verification.sides import open_sides

__all__ = ["Verification", "diff", "verify"]

_DIFFERENT, _BROKEN, _NOT_COMPARED = 7, 6, 3
Progress = Callable[[int, int], None]


@dataclass(slots=True, repr=False)
class Verification(Result):
    """The result of a verification: the report on the checkpoint, damage, copies that differ, and the comparison with
    another checkpoint or with digests; and what the formats' own readers said.
    """

    report: InspectionReport
    broken: list[Finding] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    comparison: Comparison | None = None
    digests: DigestComparison | None = None
    reference: ReferenceCheck | None = None

    @property
    def exit_code(self) -> int:
        """6 if the checkpoint is not whole, 7 if values differ, 6 or 3 if not all was compared, 0 otherwise."""
        if self.broken:
            return _BROKEN
        if self.drifts or self._differs:
            return _DIFFERENT
        refused = self.reference is not None and self.reference.refused
        nothing = any(part is not None and not part.nbytes for part in (self.digests, self.reference))
        lacking = refused or nothing or (self.digests is not None and self.digests.incomparable)
        code = 0 if self.comparison is None else self.comparison.exit_code_of_values
        return max(code, _NOT_COMPARED if lacking else 0)

    @property
    def _differs(self) -> bool:
        return (
            (self.comparison is not None and self.comparison.differs)
            or (self.digests is not None and self.digests.differs)
            or (self.reference is not None and bool(self.reference.different))
        )


def verify(
    dst: Path,
    against: Path | None,
    given: Given,
    own: Given,
    reading: ReadingOptions,
    replicated: str = "first",
    progress: Progress | None = None,
    *,
    reference: str | None = None,
) -> Verification:
    """Verify a checkpoint; see :func:`streamconv.verify`.

    Args:
        dst: the checkpoint to verify.
        against: the checkpoint that it was made from, or a file of digests of it.
        given: the user's options for ``against``, or for ``dst`` alone.
        own: those for ``dst``, where it is compared; ``given`` are used where they leave it ambiguous.
        reading: how values are read.
        replicated: which copy of ``against``'s replicated parameters is compared; ``fail`` wants them equal.
        progress: called with (bytes done, bytes in all) of the pass that runs.
        reference: ``sample`` or ``all``: what the formats' own readers are asked about.

    Raises:
        SourceError: a side is not there or not a checkpoint.
        UnsupportedError: with ``reference``, this release of torch is not safe.
        DamagedError: ``dst`` is a single file that cannot be opened, or ``against`` is broken.
        DifferenceError: copies in ``against`` differ, and ``replicated`` is ``fail``.
        MemoryBudgetError: the budget is too small.
    """
    # What the inspection of DST has no use for, the comparison has.
    own = given if against is None else own.forgiving(own.values)
    room = None if reference is None else fit_reference(dst, reading)
    with own.naming_its_own():
        report = inspect(dst, own, InspectOptions(check=True), reading, progress)
    if not report.files:
        below = [each.what for each in report.evidence]
        raise SourceError(
            f"{report.what}, none of which was looked at",
            where=dst,
            remedy=f"give one of them: {listed(below, len(below))}",
        )
    report.findings = [_with_flags(finding, own.own_flags) for finding in report.findings]
    if "tag" not in own.values:
        report.findings += _root_faults(dst, report)
    if not any(finding.exit_code == _BROKEN for finding in report.findings):
        report.findings += faults_of_masters(dst, own)
    result = Verification(report, [finding for finding in report.findings if finding.exit_code == _BROKEN])
    if result.broken:
        return result
    if reference is not None and room is not None:
        names = [row.path for row in files_of_tensors(report)]
        result.reference = check_reference(report.folder, names, reference, room, progress)
    if against is None:
        return result
    if is_digests(against):
        result.digests = compare_with_digests(dst, against, own, reading, progress)
        result.drifts = result.digests.drifts
        return result
    policy = "first" if replicated == "fail" else replicated
    source, made = open_sides(against, dst, given, own, policy, otherwise=given)
    settings = fit_sweep(reading, sides=2)
    # Also where they need not be equal: a copy whose checksum is wrong is damage in SRC.
    compare_replicas(source.replicas, replicated, settings.io, settings.block)
    result.drifts = compare_replicas(made.replicas, "first", settings.io, settings.block)
    result.comparison = compare(source, made, settings, cast=True, progress=progress)
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


def diff(
    a: Path,
    b: Path,
    given_a: Given,
    given_b: Given,
    reading: ReadingOptions,
    progress: Progress | None = None,
    *,
    everything: bool = False,
) -> Comparison:
    """The differences between two checkpoints; see :func:`streamconv.diff`.

    Args:
        a: a checkpoint file or folder.
        b: another.
        given_a: the user's options for ``a``.
        given_b: those for ``b``.
        reading: how values are read.
        progress: called with (bytes done, bytes in all).
        everything: compare all tensors by file and name.

    Raises:
        SourceError, DamagedError: a side is not there, not a checkpoint, or broken.
        MemoryBudgetError: the budget is too small.
    """
    sides = open_sides(a, b, given_a, given_b, everything=everything)
    return compare(*sides, fit_sweep(reading, sides=2), cast=False, progress=progress)
