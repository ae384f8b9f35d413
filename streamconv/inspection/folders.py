"""Inspect a folder: find out what it is, and describe it as far as it is whole."""

from __future__ import annotations

import re
from pathlib import Path

from streamconv.containers.pickles.machine import Global
from streamconv.core.errors import SourceError, StreamconvError
from streamconv.execution.staging import JOURNAL, WORK_FOLDER
from streamconv.formats.deepspeed.source import resolve_tag
from streamconv.formats.megatron.folder import TRACKER
from streamconv.formats.registry import open_source
from streamconv.formats.source import SourceOptions
from streamconv.inspection.deepspeed_folder import OWN_OPTIMIZER, describe_parts, optimizer_facts
from streamconv.inspection.deepspeed_names import DeepSpeedNames, RecordedSizes, missing_files, parse_names
from streamconv.inspection.file_set import describe_file_set
from streamconv.inspection.inspected import Inspected
from streamconv.inspection.names import count
from streamconv.inspection.opening import global_rows, joined_globals, unsafe_globals
from streamconv.inspection.report import Evidence, Finding, OptimizerFacts, Report
from streamconv.inspection.sharded import KnownModel, canonical_tensors, describe_sharded, recognised
from streamconv.inspection.torch_dist import describe_torch_dist, is_torch_dist

__all__ = ["inspect_folder"]

_TAG = re.compile(r"(?:global_step|iter_)(\d+)")


def inspect_folder(path: Path, options: SourceOptions) -> Inspected:
    """The report on a folder, and what is needed to look further.

    Raises:
        SourceError: there is no such folder, or no checkpoint in it.
    """
    folder, notes = _checkpoint_folder(path, options.tag)
    report = Report(str(folder), "folder", 0, "")
    report.findings += [*notes, *_unfinished(path)]
    if is_torch_dist(folder):
        result = Inspected(report, describe_torch_dist(folder, report))
    else:
        result = _framework_folder(folder, options, report)
    report.nbytes = sum(file.nbytes for file in report.files)
    return result


def _unfinished(path: Path) -> list[Finding]:
    """What a conversion into the folder that ended early has left there."""
    if not (path / WORK_FOLDER / JOURNAL).is_file():
        return []
    words = "a conversion into this folder has not finished, or is running; what it has written is not shown"
    return [Finding("warning", words, str(path / WORK_FOLDER), "run the same command again, or remove it", 6)]


def _checkpoint_folder(path: Path, tag: str | None) -> tuple[Path, list[Finding]]:
    """The folder that holds the files: the one that ``latest`` or Megatron's tracker names, or the only one below."""
    if not path.is_dir():
        raise SourceError("no such file or folder", where=path)
    if tag is None and not (path / "latest").is_file() and not _is_megatron_root(path):
        steps = sorted((int(m[1]), child) for child in path.iterdir() if (m := _TAG.fullmatch(child.name)))
        if steps and steps[-1][1].is_dir():
            words = f"no `latest` says which of {len(steps)} checkpoints is meant: took {steps[-1][1].name}"
            return steps[-1][1], [Finding("note", words, str(path), "choose with --tag")]
        return path, []
    if _is_megatron_root(path) and not (path / "latest").is_file():
        return _tracked(path, tag), []
    return resolve_tag(path, tag), []


def _is_megatron_root(path: Path) -> bool:
    return (path / TRACKER).is_file()


def _tracked(path: Path, tag: str | None) -> Path:
    """The folder that the tracker names, if it is torch_dist's or DeepSpeed's; the others the format finds itself."""
    name = tag
    if name is None:
        with (path / TRACKER).open("rb") as file:
            word = file.read(64).decode("ascii", errors="replace").strip()
        name = f"iter_{int(word):07d}" if word.isdecimal() else word
    inside = path / name if re.fullmatch(r"[\w.-]+", name) and name not in (".", "..") else path
    # deepspeedai's fork writes Megatron's tracker beside DeepSpeed's `latest`, which may be lost.
    own = path / f"global_step{name.removeprefix('iter_').lstrip('0')}"
    return inside if is_torch_dist(inside) else own if not inside.is_dir() and own.is_dir() else path


def _framework_folder(folder: Path, options: SourceOptions, report: Report) -> Inspected:
    names = parse_names(child.name for child in folder.iterdir() if child.is_file())
    try:
        source, model = open_source(folder, options)
    except StreamconvError as error:
        return _unopened(folder, names, error, report)
    if source.name == "huggingface":
        # Its files are one whole each, so they are shown under their own names, and the index is looked at.
        return Inspected(report, describe_file_set(folder, None, report))
    report.path = str(model.path)
    named: list[tuple[str, dict[Global, int]]] = []
    if source.name == "deepspeed":
        names = parse_names(child.name for child in model.path.iterdir() if child.is_file())
        report.optimizer, broken, named = optimizer_facts(model.path, names)
        dp = count(model.args or {}, "data_parallel_size")
        sizes = RecordedSizes(model.tp, model.tp * model.pp if model.pp else None, dp, 0)
        report.findings += [*missing_files(names, sizes), *broken]
    found = recognised(model, options.num_heads)
    places = describe_sharded(found, report, names if source.name == "deepspeed" else None)
    if report.optimizer is None or not report.optimizer.present:
        report.optimizer = _optimizer_of_ranks(found)
    named += [(str(path.relative_to(model.path)), dict(each)) for path, each in model.named.items()]
    report.globals = global_rows(sorted(named, key=lambda pair: pair[0]))
    report.findings += unsafe_globals(report.globals)
    whole, copies = canonical_tensors(found)
    return Inspected(report, whole, copies, places)


def _optimizer_of_ranks(found: KnownModel) -> OptimizerFacts:
    parts = [dropped for dropped in found.model.dropped if "optimizer" in dropped.name]
    nbytes = sum(dropped.nbytes for dropped in parts)
    return OptimizerFacts(bool(parts), 0, nbytes, OWN_OPTIMIZER if parts else "none")


def _unopened(folder: Path, names: DeepSpeedNames, refusal: StreamconvError, report: Report) -> Inspected:
    """A folder that no source format opened: DeepSpeed's files one by one, or any set of checkpoint files."""
    is_universal = (folder / "zero").is_dir()
    if is_universal or not (names.layers or names.ranks or names.zero3 or names.optimizer):
        return Inspected(report, describe_file_set(folder, refusal, report))
    report.what = _kind(names)
    report.evidence += [Evidence(report.what, words) for words in _file_counts(names)]
    model, tensors = describe_parts(folder, names, refusal, report)
    report.optimizer, broken, named = optimizer_facts(folder, names)
    report.findings += broken
    added = global_rows(named)
    report.globals = joined_globals([*report.globals, *added])
    report.findings += unsafe_globals(added)
    own = sum(row.nbytes for row in report.tensors if ":optimizer." in row.name)
    if own and not report.optimizer.present:
        report.optimizer = OptimizerFacts(True, 0, own, OWN_OPTIMIZER)
    if model is None:
        return Inspected(report, tensors)
    report.tensors, report.files = [], []
    found = KnownModel(model)
    places = describe_sharded(found, report, names)
    whole, copies = canonical_tensors(found)
    return Inspected(report, whole, copies, places, tensors)


def _file_counts(names: DeepSpeedNames) -> list[str]:
    kinds = (
        ("layer files", len(names.layers)),
        ("mp_rank files", len(names.ranks)),
        ("ZeRO-3 model files", len(names.zero3)),
        ("optimizer files", len(names.optimizer)),
    )
    return [f"{number} {what}" for what, number in kinds if number]


def _kind(names: DeepSpeedNames) -> str:
    if names.layers:
        return "Megatron-DeepSpeed, pipeline engine"
    return "DeepSpeed, ZeRO stage 3" if names.zero3 else "DeepSpeed"
