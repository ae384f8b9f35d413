"""Inspect a folder: recognise its format, and describe every part that can be read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from streamconv.containers.pickles.machine import Global
from streamconv.core.errors import (
    AmbiguousError,
    DamagedError,
    SourceError,
    StorageError,
    StreamconvError,
    UnsupportedError,
    UsageError,
)
from streamconv.core.options import Given
from streamconv.core.work_folder import JOURNAL, WORK_FOLDER, refuse_unfinished
from streamconv.formats.common.faults import Collected
from streamconv.formats.deepspeed.folder import tag_folder
from streamconv.formats.deepspeed.grid import RecordedSizes, check_partitions
from streamconv.formats.deepspeed.names import LATEST, FolderNames, parse_names, step_folder
from streamconv.formats.megatron.folder import TRACKER, folder_named
from streamconv.formats.named import NamedModel
from streamconv.formats.recorded import first_line, is_child_name, iteration_of
from streamconv.formats.registry import ADAPTER, MODEL, find_source, known_sources, open_named
from streamconv.formats.surroundings import checkpoints_below, meant_by
from streamconv.formats.survey import survey
from streamconv.inspection.beside import files_beside
from streamconv.inspection.deepspeed_folder import OWN_OPTIMIZER, describe_parts, optimizer_facts
from streamconv.inspection.file_set import describe_file_set
from streamconv.inspection.inspected import Inspected
from streamconv.inspection.named import named_folder
from streamconv.inspection.names import count
from streamconv.inspection.opening import global_rows, joined_globals, unsafe_globals
from streamconv.inspection.places import add_ranks
from streamconv.inspection.report import Evidence, Finding, InspectionReport, OptimizerFacts, finding_of
from streamconv.inspection.runs import describe_runs
from streamconv.inspection.sharded import KnownModel, canonical_tensors, describe_sharded, recognised
from streamconv.inspection.torch_dist import describe_torch_dist, is_torch_dist
from streamconv.inspection.zero3 import flat_parameters
from streamconv.planning.opening import supplied
from streamconv.planning.unused_options import refuse_unread

__all__ = ["inspect_folder"]

_OF_DEEPSPEED = ("deepspeed", "gpt-neox")


def inspect_folder(path: Path, given: Given) -> Inspected:
    """The report on a folder, with its tensors.

    Raises:
        SourceError: there is no such folder, or no checkpoint in it.
        UsageError: an option has no effect, because such a folder is shown as it is stored.
    """
    if not path.is_dir():
        raise SourceError("no such file or folder", where=path)
    place = meant_by(path)
    path, claimed = place.path, _claimed_by(place.path, given)
    notes = [Finding("note", words, str(path)) for words in place.remarks]
    folder = path
    if claimed not in (MODEL, ADAPTER):
        folder, found = _checkpoint_folder(path, given.get("tag"))
        notes += found
    if folder != path:
        given = given.without("tag")  # it was a name below `path`, and is none below the folder
    report = InspectionReport(str(folder), "folder", 0, "")
    report.findings += [*notes, *_unfinished(path)]
    if claimed is None and folder == path and (below := checkpoints_below(path, known_sources())):
        refuse_unread(given, "a folder of several checkpoints is listed")
        return Inspected(report, {}, elsewhere=describe_runs(report, below))
    if is_torch_dist(folder):
        report.findings += _cut_off(path)
        refuse_unread(given, "a torch_dist folder is shown as it is stored")
        result = Inspected(report, describe_torch_dist(folder, report))
    else:
        result = _framework_folder(folder, given, report)
    report.nbytes = sum(file.nbytes for file in report.files)
    result.beside, elsewhere = files_beside(path, Path(report.path))
    result.elsewhere += elsewhere
    add_ranks(report)
    return result


def _claimed_by(path: Path, given: Given) -> str | None:
    """The name of the format that claims a folder; None if none or more than one does."""
    try:
        return find_source(path, given.get("tag"), given.get("weights")).name
    except StorageError:
        raise
    except StreamconvError:
        return None


def _unfinished(path: Path) -> list[Finding]:
    """A finding if the folder has the work files of an unfinished conversion."""
    if not (path / WORK_FOLDER / JOURNAL).is_file():
        return []
    words = "a conversion into this folder has not finished, or is running; what it has written is not shown"
    return [Finding("warning", words, str(path / WORK_FOLDER), "run the same command again, or remove it", 6)]


def _cut_off(path: Path) -> list[Finding]:
    """A finding if a conversion was cut off while it moved its result into the folder."""
    try:
        refuse_unfinished(path)
    except DamagedError as error:
        return [finding_of(error)]
    return []


def _checkpoint_folder(path: Path, tag: str | None) -> tuple[Path, list[Finding]]:
    """The folder of the files, and notes: the one that ``latest`` or the tracker names, or the last numbered one."""
    is_tracked = (path / TRACKER).is_file()
    if (path / LATEST).is_file() or (tag is not None and not is_tracked):
        try:
            folder, remark = tag_folder(path, tag)
        except AmbiguousError:
            return _last_numbered(path)
        return folder, [Finding("note", remark, str(path))] if remark else []
    if is_tracked:
        return _tracked(path, tag), []
    return _last_numbered(path)


def _last_numbered(path: Path) -> tuple[Path, list[Finding]]:
    numbered = ((iteration_of(child.name), child) for child in path.iterdir())
    steps = sorted((number, child) for number, child in numbered if number is not None)
    if not steps or not steps[-1][1].is_dir():
        return path, []
    words = f"no `{LATEST}` says which of {len(steps)} checkpoints is meant: took {steps[-1][1].name}"
    return steps[-1][1], [Finding("note", words, str(path), "choose with --tag")]


def _tracked(path: Path, tag: str | None) -> Path:
    """The folder that the tracker names, if it is torch_dist's or DeepSpeed's; else ``path``, which formats resolve."""
    word = first_line(path / TRACKER)
    name = tag or folder_named(word) or word
    inside = path / name if is_child_name(name) else path
    if is_torch_dist(inside):
        return inside
    # deepspeedai's fork writes Megatron's tracker beside DeepSpeed's `latest`, which may be lost.
    number = iteration_of(name)
    own = path if number is None else path / step_folder(number)
    return own if not inside.is_dir() and own.is_dir() else path


def _framework_folder(folder: Path, given: Given, report: InspectionReport) -> Inspected:
    try:
        opened = open_named(folder, given)
        if isinstance(opened.model, NamedModel):
            return named_folder(opened, opened.model, folder, given, report)
        model, named_family = supplied(opened.model, given.get("config", {}), has_args=True)
        source = opened.source
    except (UsageError, StorageError):
        raise
    except UnsupportedError as error:
        refuse_unread(given, f"the folder is shown file by file, for what is in it is not translated: {error.what}")
        return _unopened(folder, error, report)
    except StreamconvError as error:
        return _unopened(folder, error, report)
    report.path = str(model.path)
    named: list[tuple[str, dict[Global, int]]] = []
    names = parse_names(child.name for child in model.path.iterdir()) if source.name in _OF_DEEPSPEED else None
    if names is not None:
        report.optimizer, broken, named = optimizer_facts(model.path, names)
        faults = Collected()
        dp = count(model.args or {}, "data_parallel_size")
        check_partitions(model.path, names, RecordedSizes(model.tp, model.pp, dp), faults)
        report.findings += [*map(finding_of, faults.found), *broken]
    model = replace(model, vocab_size=given.get("vocab_size", model.vocab_size))
    known = recognised(model, given.get("num_heads"), named_family)
    places = describe_sharded(known, report, names)
    if report.optimizer is None or not report.optimizer.present:
        report.optimizer = _optimizer_of_ranks(known)
    named += [(str(path.relative_to(model.path)), dict(names_in_file)) for path, names_in_file in model.named.items()]
    report.globals = global_rows(sorted(named, key=lambda pair: pair[0]))
    report.findings += unsafe_globals(report.globals)
    whole, copies = canonical_tensors(known)
    return Inspected(report, whole, copies, places)


def _optimizer_of_ranks(found: KnownModel) -> OptimizerFacts:
    parts = [dropped for dropped in found.model.dropped if "optimizer" in dropped.name]
    nbytes = sum(dropped.nbytes for dropped in parts)
    return OptimizerFacts(bool(parts), 0, nbytes, OWN_OPTIMIZER if parts else "none")


def _unopened(folder: Path, refusal: StreamconvError, report: InspectionReport) -> Inspected:
    """A folder that no source format opened: DeepSpeed's files one by one, or any set of checkpoint files."""
    surveyed = None if (folder / "zero").is_dir() else survey(folder)
    if surveyed is None:
        return Inspected(report, describe_file_set(folder, refusal, report))
    names = surveyed.names
    report.what = surveyed.what
    report.evidence += [Evidence(report.what, words) for words in _file_counts(names)]
    tensors = describe_parts(surveyed, refusal, report)
    report.optimizer, broken, named = optimizer_facts(folder, names)
    report.findings += broken
    added = global_rows(named)
    report.globals = joined_globals([*report.globals, *added])
    report.findings += unsafe_globals(added)
    own = sum(row.nbytes for row in report.tensors if ":optimizer." in row.name)
    if own and not report.optimizer.present:
        report.optimizer = OptimizerFacts(True, 0, own, OWN_OPTIMIZER)
    if surveyed.model is None:
        flat = partial(flat_parameters, surveyed) if names.zero3 else None
        return Inspected(report, tensors, flat=flat)
    report.tensors, report.files = [], []
    known = KnownModel(surveyed.model)
    places = describe_sharded(known, report, names)
    whole, copies = canonical_tensors(known)
    return Inspected(report, whole, copies, places, tensors)


def _file_counts(names: FolderNames) -> list[str]:
    kinds = (
        ("layer files", len(names.layers)),
        ("mp_rank files", len(names.ranks)),
        ("ZeRO-3 model files", len(names.zero3)),
        ("files of experts", len(names.experts)),
        ("optimizer files", len(names.optimizer)),
    )
    return [f"{number} {what}" for what, number in kinds if number]
