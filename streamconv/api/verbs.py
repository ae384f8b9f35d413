"""The verbs on options that were given, by flags or by keywords: the command line and Python both call these.

What a verb needs is imported when it runs: the command line starts in a tenth of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from streamconv.api.options import options_of_verb, plan_owners, source_names
from streamconv.core.errors import UsageError
from streamconv.core.log import log, warn_of
from streamconv.core.options import Given, all_options
from streamconv.formats.frameworks import source_options

if TYPE_CHECKING:
    from streamconv.execution.disk_speed import DiskReport
    from streamconv.execution.extraction import Extracted
    from streamconv.execution.run import ConversionReport
    from streamconv.execution.stream import StreamedTensor
    from streamconv.inspection.report import InspectionReport
    from streamconv.planning.capabilities import FamilyTable
    from streamconv.planning.plan import Plan
    from streamconv.verification.comparison import Comparison
    from streamconv.verification.digests import Digests
    from streamconv.verification.verify import Verification

__all__ = [
    "bench",
    "carried_out",
    "convert",
    "diff",
    "digest",
    "extract",
    "families",
    "inspect",
    "plan",
    "planned",
    "stream",
    "verify",
]

Progress = Callable[[int, int], None]
# What is true of SRC, and so of the result that was made of it; the rest is about how SRC is stored.
_ABOUT_BOTH = ("num_heads", "vocab_size", "glu_order")
# Nothing but a comparison reads them.
_OF_COMPARISONS = ("replicated", "vocab_size", "dst_vocab_size")


def planned(src: Path, given: Given) -> Plan:
    """A plan, whatever the memory budget."""
    import streamconv.report.plans  # noqa: F401 - gives plans their face
    from streamconv.planning.planner import make_plan

    work = make_plan(src, given.only(plan_owners()))
    log.info("planned %r", work)
    for warning in work.warnings:
        warn_of(src, warning)
    return work


def plan(src: Path, given: Given) -> Plan:
    """A plan that fits the memory budget."""
    from streamconv.execution.fit import check_budget
    from streamconv.execution.options import RunOptions
    from streamconv.memory.budget import BudgetedMemory

    work = planned(src, given)
    fit = check_budget(work, given.take(RunOptions))
    return work.within(BudgetedMemory(fit.budget, fit.floor_nbytes))


def convert(src: Path, dst: Path | None, given: Given, progress: Progress | None = None) -> ConversionReport:
    """Plan, and carry it out; without ``dst`` the bytes are discarded."""
    from streamconv.planning.options import NOWHERE

    if dst is not None and given.get("to") == NOWHERE:
        raise UsageError(
            f"--to {NOWHERE} discards the result, and takes no dst", remedy="give dst=None, or choose another --to"
        )
    return carried_out(planned(src, given), dst, given, progress)


def carried_out(
    work: Plan,
    dst: Path | None,
    given: Given,
    progress: Progress | None = None,
    notice: Callable[[str], None] = log.warning,
) -> ConversionReport:
    """Carry out a plan; ``notice`` is called with what a user should know at once."""
    import streamconv.report.conversions  # noqa: F401 - gives reports their face
    from streamconv.execution.options import PublishOptions, RunOptions
    from streamconv.execution.run import run_plan

    publish = given.take(PublishOptions)
    report = run_plan(
        work,
        dst,
        given.take(RunOptions),
        overwrite=publish.overwrite,
        restart=publish.restart,
        progress=progress,
        notice=notice,
    )
    log.info("converted %r", report)
    return report


def stream(src: Path, given: Given) -> Iterator[StreamedTensor]:
    """What a conversion would write, tensor by tensor."""
    from streamconv.execution.options import RunOptions, StreamOptions
    from streamconv.execution.stream import stream_plan

    return stream_plan(planned(src, given), given.take(StreamOptions), given.take(RunOptions))


def inspect(path: Path, given: Given, progress: Progress | None = None) -> InspectionReport:
    """What is inside a file or a folder."""
    import streamconv.report.inspection  # noqa: F401 - gives reports their face
    from streamconv.inspection.inspect import inspect as look_inside
    from streamconv.inspection.options import InspectOptions
    from streamconv.values.options import ReadingOptions

    options, of_values = given.take(InspectOptions), all_options([ReadingOptions])
    if given.values.keys() & {*source_names(), *of_values}:
        from streamconv.planning.unused_options import refuse_all, refuse_unused_for  # most need no formats

        refuse_unused_for({"path": path}, given)
        if not (options.stats or options.check):
            refuse_all("without --stats or --check", of_values, given)
    report = look_inside(path, given, options, given.take(ReadingOptions), progress)
    log.info("inspected %r", report)
    return report


def verify(dst: Path, against: Path | None, given: Given, progress: Progress | None = None) -> Verification:
    """Whether a checkpoint is whole, and has the values of the one that it was made from."""
    import streamconv.report.differences  # noqa: F401 - gives results their face
    from streamconv.planning.options import ReplicaOptions
    from streamconv.planning.unused_options import refuse_all, refuse_unused_for
    from streamconv.values.options import ReadingOptions
    from streamconv.verification.digests import is_digests
    from streamconv.verification.options import ReferenceOptions
    from streamconv.verification.verify import verify as check

    if against is None or is_digests(against):
        known = options_of_verb("verify")
        names = _OF_COMPARISONS if against is None else ("replicated",)
        missing = "without --against" if against is None else "with digests"
        refuse_all(missing, {name: known[name] for name in names}, given)
        refuse_unused_for({"dst": dst}, given)
        own = of_src = given.side("dst", source_names())
    else:
        refuse_unused_for({"dst": dst, "against": against}, given, shared={"dst": _ABOUT_BOTH})
        of_src = given.forgiving(_ABOUT_BOTH).side("against", source_names())
        own = given.forgiving(_ABOUT_BOTH).side("dst", source_names(), shared=_ABOUT_BOTH)
        own = own.called("dst", all_options(source_options()).values())
    policy, reference = given.take(ReplicaOptions).replicated, given.take(ReferenceOptions).reference
    found = check(dst, against, of_src, own, given.take(ReadingOptions), policy, progress, reference=reference)
    log.info("verified %r", found)
    return found


def diff(a: Path, b: Path, given: Given, progress: Progress | None = None) -> Comparison:
    """What is different between two checkpoints."""
    import streamconv.report.differences  # noqa: F401 - gives results their face
    from streamconv.planning.unused_options import refuse_unused_for
    from streamconv.values.options import ReadingOptions
    from streamconv.verification.options import DiffOptions
    from streamconv.verification.verify import diff as compare

    refuse_unused_for({"a": a, "b": b}, given)
    known, for_both = all_options(source_options()), given.forgiving(source_names())
    of_a, of_b = (for_both.side(side, known).called(side, known.values()) for side in ("a", "b"))
    everything = given.take(DiffOptions).everything
    found = compare(a, b, of_a, of_b, given.take(ReadingOptions), progress, everything=everything)
    log.info("compared %r", found)
    return found


def digest(path: Path, given: Given, progress: Progress | None = None) -> Digests:
    """The digest of every parameter."""
    import streamconv.report.digests  # noqa: F401 - gives results their face
    from streamconv.planning.options import ReplicaOptions
    from streamconv.planning.unused_options import refuse_unused_for
    from streamconv.values.options import ReadingOptions
    from streamconv.verification.options import DigestOptions
    from streamconv.verification.taking_digests import digest as take

    refuse_unused_for({"path": path}, given)
    return take(
        path,
        given,
        given.take(ReadingOptions),
        algorithm=given.take(DigestOptions).algorithm,
        replicated=given.take(ReplicaOptions).replicated,
        progress=progress,
    )


def extract(src: Path, name: str, out: Path, given: Given, progress: Progress | None = None) -> Extracted:
    """Write one tensor to a file of its own."""
    import streamconv.report.extraction  # noqa: F401 - gives results their face
    from streamconv.execution.extraction import extract as write

    return write(src, name, out, given, progress)


def bench(folder: Path, src: Path | None, given: Given) -> DiskReport:
    """How fast a disk is, and how long a conversion would take on it."""
    import streamconv.report.disks  # noqa: F401 - gives reports their face
    from streamconv.execution.disk_speed import DiskReport, measure_disk, predict
    from streamconv.execution.fit import settings_for
    from streamconv.execution.options import BenchOptions, RunOptions
    from streamconv.memory.budget import parse_size

    if src is None:
        from streamconv.planning.unused_options import refuse_all

        refuse_all("without --src", all_options(plan_owners()), given)
    began = time.monotonic()
    work = None if src is None else planned(src, given)
    planning = time.monotonic() - began
    settings = settings_for(work, given.take(RunOptions))
    speed = measure_disk(folder, parse_size(given.take(BenchOptions).size), settings)
    report = DiskReport(speed, None if work is None else predict(work, speed), planning)
    log.info("measured %r", report)
    return report


def families() -> FamilyTable:
    """Which model families go from which source to which target."""
    import streamconv.report.capabilities  # noqa: F401 - gives tables their face
    from streamconv.planning.capabilities import FamilyTable, capability_table

    table = FamilyTable(tuple(capability_table()))
    log.info("listed %r", table)
    return table
