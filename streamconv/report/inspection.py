"""An inspection's report as a document: facts first, findings last, where a reader of a terminal looks first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from streamconv.core.result import Face
from streamconv.inspection.plain import report_dict
from streamconv.inspection.report import Cell, InspectionReport, ParallelFacts, StatisticsRow, TensorRow
from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import Block, Pairs, Remarks, Table, plain_text, plural
from streamconv.report.notebook import blocks_html
from streamconv.report.tensor_places import tensor_places, tensor_words
from streamconv.values.statistics import joined

__all__ = ["Detail", "report_blocks"]

_MOST_ROWS = 60
_WIDEST = 100


@dataclass(frozen=True, slots=True)
class Detail:
    """What to show beside the summary: each tensor, the whole tree with all values, the classes that pickles name."""

    tensors: bool = False
    tree: bool = False
    globals: bool = False


def report_blocks(report: InspectionReport, detail: Detail) -> list[Block]:
    """The blocks of a report."""
    return [block for block in _blocks(report, detail) if not isinstance(block, Table) or block.rows]


def _blocks(report: InspectionReport, detail: Detail) -> Iterator[Block]:
    yield Pairs(report.what, tuple(_heading(report)))
    if report.evidence:
        yield Pairs("known from", tuple((fact.what, fact.evidence) for fact in report.evidence))
    facts = tuple(_model(report))
    # A single file has only a part of a model, so its unknown facts are not shown.
    known = facts if report.kind == "folder" else tuple(row for row in facts if row[1] != "unknown")
    if known:
        yield Pairs("model", known)
    if report.parallel is not None:
        yield _grid("ranks and stages", report.parallel)
    if report.target is not None:
        yield _grid("target", report.target)
    yield _dtypes(report)
    if (report.kind == "folder" and report.parallel is None) or detail.tree:
        yield _files(report)
    if report.statistics is not None:
        yield _statistics(report, report.statistics, detail)
    elif report.kind == "file" or detail.tensors or detail.tree:
        yield from _tensors(report, whole=detail.tensors or detail.tree)
    yield from _values(report, detail)
    if detail.globals:
        yield _globals(report)
    if report.findings:
        yield Remarks("findings", tuple((f.severity, f.what, f.where, f.remedy) for f in report.findings))


def _heading(report: InspectionReport) -> Iterator[tuple[str, str]]:
    yield "path", report.path
    count = f" in {plural(len(report.files), 'file')}" if report.kind == "folder" else ""
    yield "size", f"{format_bytes(report.nbytes)}{count}, {plural(len(report.tensors), 'stored tensor')}"
    if report.storage and report.storage["unused_nbytes"]:
        used, stored = report.storage["used_nbytes"], report.storage["stored_nbytes"]
        yield "storage", f"{format_bytes(used)} used of {format_bytes(stored)} stored"
    shared = sum(row.shares is not None for row in report.tensors)
    if shared:
        yield "shared", f"{shared} tensors are the same bytes as another"
    if report.optimizer is not None:
        state = report.optimizer
        files = f"{plural(state.files, 'file')}, " if state.files else ""
        size = f"{files}{format_bytes(state.nbytes)}, "
        yield "optimizer", f"{size}{state.what}" if state.present else "no state"
    if report.checked is not None:
        words = f"{report.checked['records']} records have the CRC-32 that is recorded"
        without = report.checked["without_crc"]
        yield "checked", f"{words}; {without} have none" if without else words


def _model(report: InspectionReport) -> Iterator[tuple[str, str]]:
    facts = report.model
    if facts is None:
        return
    layers = f"{facts.num_layers}" if facts.num_layers is not None else None
    if layers and facts.parameters_per_layer:
        layers += f" of {facts.parameters_per_layer:,} parameters each"
    vocabulary = facts.vocabulary
    rows = None if vocabulary.stored is None else f"{vocabulary.stored} rows stored"
    if rows and vocabulary.true is not None:
        rows += f", {vocabulary.true} true, {vocabulary.padding} padding"
    heads = None if facts.heads is None else f"{facts.heads}"
    if heads and facts.kv_groups not in (None, facts.heads):
        heads += f", {facts.kv_groups} groups of keys and values"
    for name, value in (
        ("family", facts.family),
        ("iteration", facts.iteration),
        ("parameters", f"{facts.parameters:,}" if facts.parameters else None),
        ("layers", layers),
        ("hidden", facts.hidden),
        ("ffn", facts.ffn),
        ("heads", heads),
        ("vocabulary", rows),
        ("positions", facts.positions),
    ):
        yield name, "unknown" if value is None else str(value)


def _grid(title: str, facts: ParallelFacts) -> Block:
    sizes = [f"{name} {size}" for name, size in (("TP", facts.tp), ("PP", facts.pp), ("DP", facts.dp)) if size]
    title = f"{title}: {' x '.join(sizes) or 'unknown'}"
    if facts.stages is None:
        title += ", which stage owned which layer is unknown"
    stages = facts.stages or ()
    rows = []
    for stage, cells in groupby(facts.grid, key=lambda cell: cell.stage):
        layers = _ranges(stages[stage]) if stage < len(stages) else "all"
        rows += [(str(stage), layers, str(cell.rank), str(len(cell.files)), _names(cell)) for cell in cells]
    if not rows:
        return Pairs(title, (("grid", "not known: the files do not say it, or the findings say why"),))
    return Table(title, (">stage", "layers", ">rank", ">files", ""), tuple(rows))


def _ranges(layers: Sequence[int]) -> str:
    """Layers as ``0-2,6-8``: consecutive layers are one run; virtual stages have several."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"


def _names(cell: Cell) -> str:
    """File names, with names that differ in one consecutive number folded into one."""
    runs: list[tuple[str, list[str], str]] = []
    for name in cell.files:
        match = re.fullmatch(r"(.*?(?:layer_|zero_pp_rank_))([0-9]+)(.*)", name)
        head, number, tail = (match[1], match[2], match[3]) if match else (name, "", "")
        if runs and match and (runs[-1][0], runs[-1][2]) == (head, tail) and int(number) == int(runs[-1][1][-1]) + 1:
            runs[-1][1].append(number)
        else:
            runs.append((head, [number], tail))
    return ", ".join(f"{head}{_run(numbers)}{tail}" for head, numbers, tail in runs)


def _run(numbers: Sequence[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"[{numbers[0]}-{numbers[-1]}]"


def _dtypes(report: InspectionReport) -> Table:
    rows = [
        (name, f"{entry['tensors']}", f"{entry['elements']:,}", format_bytes(entry["nbytes"]))
        for name, entry in report.dtypes().items()
    ]
    return Table("stored", ("dtype", ">tensors", ">elements", ">bytes"), tuple(rows))


def _files(report: InspectionReport) -> Table:
    shown = report.files[:_MOST_ROWS]
    rows = [(file.path, format_bytes(file.nbytes), f"{file.tensors}", file.kind) for file in shown]
    more = len(report.files) - len(shown)
    return Table(f"files ({more} more not shown)" if more else "files", ("", ">size", ">tensors", "kind"), tuple(rows))


def _statistics(report: InspectionReport, statistics: Sequence[StatisticsRow], detail: Detail) -> Table:
    """A row for each tensor; if there are many, one for each parameter over all layers, and the flagged ones."""
    shown = statistics
    has_state = report.optimizer is not None and report.optimizer.present
    title = "values of the parameters (not of the optimizer's state)" if has_state else "values"
    if len(statistics) > _MOST_ROWS and not (detail.tensors or detail.tree):
        shown = [*_folded(statistics), *(row for row in statistics if row.flags)]
        title += ", layers folded; each tensor with --tree"
    marked = frozenset(number for number, row in enumerate(shown) if row.flags)
    headings = ("tensor", ">min", ">max", ">mean", ">std", ">rms", ">zeros", ">NaN", ">Inf", "")
    return Table(title, headings, tuple(map(_values_row, shown)), marked)


def _values_row(row: StatisticsRow) -> tuple[str, ...]:
    values = row.values
    numbers = [_short(value) for value in (values.least, values.most, values.mean, values.std, values.rms)]
    return (row.name, *numbers, str(values.zeros), str(values.nan), str(values.inf), "; ".join(row.flags))


def _folded(statistics: Sequence[StatisticsRow]) -> Iterator[StatisticsRow]:
    """The statistics with the layers of each parameter joined into one row."""
    groups: dict[tuple[str | None, str], list[StatisticsRow]] = {}
    for row in statistics:
        key = (None, row.name) if row.layer is None else (row.parameter, row.dtype)
        groups.setdefault(key, []).append(row)
    for rows in groups.values():
        first = rows[0]
        if len(rows) == 1:
            yield replace(first, flags=())
            continue
        layers = [row.layer for row in rows if row.layer is not None]
        name = first.name.replace(f".{layers[0]}.", f".[{min(layers)}-{max(layers)}].", 1)
        yield StatisticsRow(name, None, None, first.dtype, first.shape, joined([row.values for row in rows]))


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _tensors(report: InspectionReport, *, whole: bool) -> Iterator[Block]:
    """Each tensor, or each parameter with its layers folded."""
    headings = ("tensor", "dtype", "shape", ">bytes", ">offset", "")
    if whole:
        yield from tensor_places(report)
        return
    folded: dict[tuple[Any, ...], list[TensorRow]] = {}
    for row in report.tensors:
        key = (row.parameter, row.dtype, row.shape) if row.layer is not None else (row.name, row.offset)
        folded.setdefault(key, []).append(row)
    rows = []
    for group in folded.values():
        first, layers = group[0], [row.layer for row in group if row.layer is not None]
        if len(group) == 1 or not layers:
            rows += [tensor_words(row, row.name, "") for row in group]
        else:
            name = first.name.replace(f".{layers[0]}.", f".[{min(layers)}-{max(layers)}].", 1)
            rows.append(tensor_words(first, name, f"x {len(group)}"))
    shown = rows[:_MOST_ROWS]
    more = f", {len(rows) - len(shown)} more with --tree" if len(rows) > len(shown) else ""
    yield Table(f"tensors, layers folded{more}", headings, tuple(shown))


def _values(report: InspectionReport, detail: Detail) -> Iterator[Block]:
    if report.args and (report.kind == "file" or detail.tree):
        yield Table("args", ("name", "value"), tuple((name, str(value)) for name, value in report.args.items()))
    values = list(report.values.items())
    shown = values if detail.tree else values[:_MOST_ROWS]
    if shown:
        rows = tuple((name or "(the file)", _cut(str(value), whole=detail.tree)) for name, value in shown)
        more = f", {len(values) - len(shown)} more with --tree" if len(values) > len(shown) else ""
        yield Table(f"other values{more}", ("name", "value"), rows)


def _cut(text: str, *, whole: bool) -> str:
    return text if whole or len(text) <= _WIDEST else f"{text[:_WIDEST]}.."


def _globals(report: InspectionReport) -> Table:
    words = {
        "plain": "plain torch loads it",
        "refused": "plain torch refuses it (weights_only)",
        "executes": "could run code",
    }
    rows = [(row.name, words[row.verdict], str(row.called), _files_of(row.files)) for row in report.globals]
    marked = frozenset(number for number, row in enumerate(report.globals) if row.verdict == "executes")
    return Table("classes and functions that pickles name", ("name", "", ">called", "in"), tuple(rows), marked)


def _files_of(files: Iterable[str]) -> str:
    names = list(files)
    return names[0] if len(names) == 1 else f"{len(names)} files, first {names[0]}"


def _usual_blocks(report: InspectionReport) -> list[Block]:
    return report_blocks(report, Detail(tensors=report.lists_tensors))


def _line(report: InspectionReport) -> str:
    return f"{report.what}, {format_bytes(report.nbytes)}, {plural(len(report.findings), 'finding')}: {report.path}"


InspectionReport.face = Face(
    _line,
    lambda report: plain_text(_usual_blocks(report)),
    report_dict,
    lambda report: blocks_html(_usual_blocks(report)),
)
