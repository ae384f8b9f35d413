"""Describe a model that opened as whole named tensors, out of the files that ranks hold parts of it in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from streamconv.containers.open_any import all_files
from streamconv.core.errors import DamagedError, StorageError, StreamconvError, UsageError
from streamconv.core.options import Given
from streamconv.formats.common.faults import Collected, listed
from streamconv.formats.common.layer_numbers import place_of
from streamconv.formats.deepspeed.folder import ZERO, is_universal, names_in
from streamconv.formats.deepspeed.grid import RecordedSizes, check_partitions
from streamconv.formats.deepspeed.names import FolderNames
from streamconv.formats.deepspeed.rank_files import open_ranks
from streamconv.formats.huggingface.naming import parameters_of
from streamconv.formats.named import NamedModel
from streamconv.formats.options import SourceOptions
from streamconv.formats.registry import ADAPTER, MODEL, OpenedSource, known_sources
from streamconv.formats.surroundings import checkpoints_below
from streamconv.inspection.deepspeed_folder import optimizer_facts
from streamconv.inspection.file_set import describe_file_set
from streamconv.inspection.inspected import Inspected
from streamconv.inspection.names import count, guess_family
from streamconv.inspection.opening import global_rows, unsafe_globals
from streamconv.inspection.places import parts_of
from streamconv.inspection.report import (
    Cell,
    Evidence,
    FileRow,
    Finding,
    InspectionReport,
    ModelFacts,
    OptimizerFacts,
    ParallelFacts,
    TensorRow,
    Vocabulary,
    finding_of,
)
from streamconv.inspection.sharded import recognised
from streamconv.io.reading import nbytes_there
from streamconv.planning.unused_options import refuse_unread

__all__ = ["named_folder"]


def _describe(model: NamedModel, report: InspectionReport, names: FolderNames, given: Given) -> None:
    """Fill a report from an opened model of names of its own."""
    report.path, report.what = str(model.path), model.format
    report.evidence += [Evidence(fact.what, fact.evidence) for fact in model.facts]
    report.findings += [Finding("warning", words) for words in model.warnings]
    report.tensors = [_row(name, model) for name in model.tensors]
    report.files = _files(model.path, report.tensors)
    stages = max(1, len(names.ranks))
    cells = []
    for stage in range(stages):
        files = [names.ranks[stage]] if stage in names.ranks else []
        files += [file for (_, rank), file in sorted((*names.zero3.items(), *names.optimizer.items())) if rank == stage]
        cells.append(Cell(stage, 0, tuple(files)))
    report.parallel = ParallelFacts(1, stages, names.dp, None, tuple(cells))
    report.model = _facts(model, report, given)


def _row(name: str, model: NamedModel) -> TensorRow:
    tensor = model.tensors[name]
    layer, parameter = place_of(name)
    parts = parts_of(tensor, model.path)
    file, offset, rank, stage = "", None, None, None
    if len(parts) == 1:
        file, offset, rank, stage = parts[0].file, parts[0].offset, parts[0].rank, parts[0].stage
    kept = model.shared.get(name)
    return TensorRow(
        *(name, file, str(tensor.dtype), tensor.shape, tensor.nbytes, offset, layer, parameter, kept, rank, stage),
        parts=parts if len(parts) > 1 else (),
    )


def _files(folder: Path, rows: list[TensorRow]) -> list[FileRow]:
    used = Counter(file for row in rows for file in {row.file, *(part.file for part in row.parts)})
    files = []
    for path in all_files(folder):
        name = str(path.relative_to(folder))
        kind = "optimizer" if "optim" in name else "parameters" if name in used else "state"
        files.append(FileRow(name, path.stat().st_size, kind, used.get(name, 0)))
    return files


def _facts(model: NamedModel, report: InspectionReport, given: Given) -> ModelFacts:
    """The sizes: of a translated family by its parameters, else as far as config.json and the names say them."""
    config: dict[str, Any] = {**(model.config or {}), **given.get("config", {})}
    guess = guess_family(row.parameter or row.name for row in report.tensors)
    family, sizes = guess.family if guess else None, None
    if config:
        try:
            known = recognised(parameters_of(model, given.take(SourceOptions)), given.get("num_heads"))
            family, sizes = known.family.title if known.family else family, known.sizes
        except StreamconvError as error:
            report.findings.append(finding_of(error, "note"))
    elif guess is not None:
        report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    layers = {row.layer for row in report.tensors if row.layer is not None}
    heads = count(config, "num_attention_heads", "n_head")
    rows = count(config, "vocab_size")
    return ModelFacts(
        family=family,
        iteration=model.iteration,
        num_layers=len(layers) or count(config, "num_hidden_layers", "n_layer"),
        hidden=sizes.hidden if sizes else count(config, "hidden_size", "n_embd"),
        ffn=sizes.ffn if sizes else count(config, "intermediate_size"),
        heads=sizes.heads if sizes else heads,
        kv_groups=sizes.groups if sizes else count(config, "num_key_value_heads") or heads,
        vocabulary=Vocabulary(rows, rows, 0 if rows else None),
        positions=count(config, "max_position_embeddings", "n_positions"),
        parameters=sum(
            tensor.numel
            for name, tensor in model.tensors.items()
            if name not in model.shared and name not in model.buffers
        ),
    )


def named_folder(
    opened: OpenedSource, model: NamedModel, folder: Path, given: Given, report: InspectionReport
) -> Inspected:
    """A model by its own names: a Hugging Face folder, or a run of DeepSpeed whose ranks hold parts of it."""
    report.findings += [Finding("note", words, str(folder)) for words in opened.remarks]
    if opened.source.name in (MODEL, ADAPTER):
        # Its tensors are whole, so they are shown under their stored names; the index is checked too.
        refuse_unread(given, "a Hugging Face folder is shown as it is stored")
        others = checkpoints_below(model.path, known_sources())
        if others:
            words = f"other checkpoints are below, which are not shown: {listed(others, len(others))}"
            report.findings.append(Finding("note", words, str(model.path)))
        tensors = describe_file_set(model.path, _refusal_of(opened, model, given), report, others)
        return Inspected(report, tensors, elsewhere=others)
    refuse_unread(given.without("config"), "a run of DeepSpeed is shown by its own names")
    names = names_in(model.path)
    _describe(model, report, names, given)
    report.optimizer, broken, named = optimizer_facts(model.path, names)
    faults = Collected()
    if is_universal(model.path):
        report.optimizer = _optimizer_of_universal(model)
    else:
        check_partitions(model.path, names, RecordedSizes(dp=_recorded_dp(model.path, names)), faults)
    report.findings += [*map(finding_of, faults.found), *broken]
    known = {name for name, _ in named}
    for path, globals_of_file in model.named.items():
        name = str(path.relative_to(model.path))
        named += [] if name in known else [(name, dict(globals_of_file))]
    report.globals = global_rows(sorted(named, key=lambda pair: pair[0]))
    report.findings += unsafe_globals(report.globals)
    copies = {each.name: each.copies for each in model.replicas}
    return Inspected(report, dict(model.tensors), copies, sources=tuple(model.sources.values()))


def _recorded_dp(folder: Path, names: FolderNames) -> int | None:
    """The data-parallel size that the first model file records: files of the last ranks may be missing."""
    first = sorted([*names.ranks.values(), *names.zero3.values()])[:1]
    return open_ranks(folder, first, Collected()).sizes(None, is_pipeline=bool(names.layers)).dp


def _refusal_of(opened: OpenedSource, model: NamedModel, given: Given) -> StreamconvError | None:
    """Why a Hugging Face folder is no whole model of a translated family; None if it is, or nothing says what it is."""
    if model.config is None or opened.source.name == ADAPTER:
        return model.loss
    try:
        parameters_of(model, given.take(opened.source.options))
    except (UsageError, StorageError):
        raise
    except DamagedError as error:
        return error
    except StreamconvError as error:
        return model.loss or error
    return None


def _optimizer_of_universal(model: NamedModel) -> OptimizerFacts:
    states = [path for path in (model.path / ZERO).glob("*/*.pt") if path.name != "fp32.pt"]
    kinds = ", ".join(sorted({path.stem for path in states}))
    what = f"{kinds} of each parameter" if states else "none"
    return OptimizerFacts(bool(states), len(states), nbytes_there(states), what)
