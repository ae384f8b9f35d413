"""Look inside a checkpoint, a file or a folder, without executing anything in it: ``streamconv inspect``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from streamconv.core.errors import DamagedError, UsageError
from streamconv.core.lazy import LazyTensor
from streamconv.core.options import Given
from streamconv.formats.common.layer_numbers import place_of
from streamconv.inspection.inspected import Inspected
from streamconv.inspection.options import InspectOptions
from streamconv.inspection.report import Finding, InspectionReport, StatisticsRow, finding_of

if TYPE_CHECKING:
    from streamconv.values.options import ReadingOptions
    from streamconv.values.sweep import SweepSettings

__all__ = ["InspectionReport", "inspect"]

# The most ranks that a target is mapped to; no cluster has as many on an axis.
_MOST_RANKS = 1 << 16


def inspect(
    path: Path,
    given: Given,
    options: InspectOptions,
    reading: ReadingOptions,
    progress: Callable[[int, int], None] | None = None,
) -> InspectionReport:
    """Inspect a file or a folder.

    Args:
        path: a checkpoint file of any kind that is read, or a folder of them.
        given: the user's options for a folder.
        options: what to inspect beyond the metadata.
        reading: how values are read.
        progress: called with (bytes done, bytes in all) while values are streamed.

    Raises:
        SourceError: there is no file or folder, or no checkpoint in it.
        DamagedError: a single file cannot be opened. In a folder that is a finding.
        UsageError: the target to map is impossible.
        MemoryBudgetError: the budget is too small to read values.
    """
    inspected = _open(path, given)
    report = inspected.report
    if options.target_tp is not None or options.target_pp is not None:
        said = given.values.keys() & {"target_tp", "target_pp"} - given.ambient
        _add_target(inspected, options, is_asked=bool(said))
    if options.tensors is not None:
        _keep(inspected, options.tensors)
    if options.stats or options.check:
        _read_data(inspected, options, reading, progress)
    return report


def _read_data(
    found: Inspected, options: InspectOptions, reading: ReadingOptions, progress: Callable[[int, int], None] | None
) -> None:
    from streamconv.values.sweep import fit_sweep

    # Fitted once: memory that the first sweep leaves allocated must not count against the second.
    settings = fit_sweep(reading)
    if options.stats:
        _add_statistics(found, options.tensors, settings, progress)
    if options.check:
        _check(found, settings, progress)


def _open(path: Path, given: Given) -> Inspected:
    # Imported late: inspecting a single file is frequent and needs no formats or families.
    if not path.is_dir():
        from streamconv.inspection.files import inspect_file

        return Inspected(*inspect_file(path))
    from streamconv.inspection.folders import inspect_folder

    return inspect_folder(path, given)


def _add_target(found: Inspected, options: InspectOptions, *, is_asked: bool) -> None:
    from streamconv.inspection.target_map import map_target

    report = found.report
    layers = report.model.num_layers if report.model else None
    if not found.places and any(finding.exit_code for finding in report.findings):
        report.findings.append(Finding("note", "no map of a target: the checkpoint is not whole"))
        return
    if report.parallel is None or not found.places or not layers:
        if not is_asked:
            return
        raise UsageError(
            f"{report.what} has no ranks that could be mapped to a target", remedy="leave out --target-tp, --target-pp"
        )
    sizes = [size for row in report.tensors for size in row.shape if row.nbytes]
    heads = report.model.heads if report.model else None
    widest = min(heads or _MOST_RANKS, max(sizes, default=1), _MOST_RANKS)
    report.target = map_target(options.target_tp, options.target_pp, report.parallel, layers, widest, found.places)


def _keep(found: Inspected, pattern: str) -> None:
    report = found.report
    report.tensors = [row for row in report.tensors if fnmatchcase(row.name, pattern)]
    report.lists_tensors = True
    names = {row.name for row in report.tensors}
    found.tensors = {name: tensor for name, tensor in found.tensors.items() if name in names}
    found.copies = {name: shards for name, shards in found.copies.items() if name in names}


def _add_statistics(
    found: Inspected,
    pattern: str | None,
    settings: SweepSettings,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Add statistics, findings for unusual values, and findings for replicated parameters that differ."""
    from streamconv.core.replica import Replica
    from streamconv.inspection.torch_dist import by_layer
    from streamconv.values.measure import tensor_statistics
    from streamconv.values.replicas import compare_replicas
    from streamconv.values.statistics import flags_of

    report = found.report
    tensors = dict(by_layer(found.tensors))
    if found.flat is not None:
        flat = found.flat()
        tensors |= {name: part for name, part in flat.parts.items() if pattern is None or fnmatchcase(name, pattern)}
        report.findings += flat.findings
    try:
        values = tensor_statistics(tensors, settings, progress)
        replicas = [Replica(name, copies) for name, copies in found.copies.items()]
        drifts = compare_replicas(replicas, "first", settings.io, settings.block)
    except DamagedError as error:
        report.findings.append(finding_of(error))
        return
    places = {row.name: (row.layer, row.parameter) for row in report.tensors}
    where = {name: places.get(name) or place_of(name) for name in values}
    flags = flags_of(values, {name: kind or name for name, (layer, kind) in where.items() if layer is not None})
    report.statistics = [
        StatisticsRow(
            name, *where[name], str(tensors[name].dtype), tensors[name].shape, statistics, tuple(flags.get(name, ()))
        )
        for name, statistics in values.items()
    ]
    for name, words in flags.items():
        files = _files_of([tensors[name]])
        report.findings.append(Finding("warning", f"{name}: {', '.join(words)}", files, exit_code=7))
    for drift in drifts:
        ranks = ", ".join(map(str, drift.ranks))
        what = (
            f"{drift.name} has drifted: rank {ranks} differs from rank 0 in {drift.elements} elements, "
            f"by at most {drift.largest:g}"
        )
        files = _files_of(found.copies[drift.name][rank] for rank in drift.ranks)
        report.findings.append(Finding("warning", what, files, "choose a copy with --replicated", exit_code=7))


def _files_of(tensors: Iterable[LazyTensor]) -> str:
    """The names of the files that tensors are stored in."""
    views = (view for tensor in tensors for piece in tensor.pieces for view in piece.views)
    names = sorted({str(view.storage.path) for view in views})
    return f"{', '.join(names[:4])}{' ..' * (len(names) > 4)}"


def _check(found: Inspected, settings: SweepSettings, progress: Callable[[int, int], None] | None) -> None:
    from streamconv.inspection.integrity import check_files
    from streamconv.inspection.opening import global_rows, joined_globals, unsafe_globals
    from streamconv.inspection.stored import files_of_tensors

    report = found.report
    base = report.folder
    opened = [base / row.path for row in files_of_tensors(report) if row.kind != "cannot be opened"]
    verdict = check_files([*opened, *found.beside], settings, progress)
    # Files that were not opened before, such as most optimizer files.
    known_files = {file for row in report.globals for file in row.files}
    others = [(path, named) for path, named in verdict.named if path.suffix != ".distcp"]
    named = [(os.path.relpath(path, base), named) for path, named in others]
    added = global_rows([(name, globals_of_file) for name, globals_of_file in named if name not in known_files])
    report.globals = joined_globals([*report.globals, *added])
    report.findings += unsafe_globals(added)
    report.checked = {"records": verdict.records, "without_crc": verdict.without_crc, "nbytes": verdict.nbytes}
    known = {(finding.what, finding.where) for finding in report.findings}
    report.findings += [finding for finding in verdict.findings if (finding.what, finding.where) not in known]
