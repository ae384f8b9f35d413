"""Inspect one file."""

from __future__ import annotations

from pathlib import Path

from streamconv.containers.open_any import open_any
from streamconv.containers.stored_file import StoredFile
from streamconv.core.lazy import LazyTensor
from streamconv.inspection.names import count, guess_family
from streamconv.inspection.opening import global_rows, unsafe_globals
from streamconv.inspection.report import Evidence, FileRow, Finding, InspectionReport, ModelFacts
from streamconv.inspection.stored import storage_facts, tensor_rows
from streamconv.inspection.values import args_table, readable_values

__all__ = ["inspect_file"]

# From this size and share on, stored bytes that no tensor uses are reported.
_BLOAT_NBYTES, _BLOAT_SHARE = 1 << 20, 0.1


def inspect_file(path: Path) -> tuple[InspectionReport, dict[str, LazyTensor]]:
    """The report on a file, and its tensors by name.

    Raises:
        SourceError, DamagedError, StorageError: see :func:`open_any`.
    """
    file = open_any(path)
    tensors = file.tensors()
    report = InspectionReport(str(path), "file", path.stat().st_size, _title(file))
    report.files = [FileRow(path.name, report.nbytes, file.kind, len(tensors))]
    report.tensors = tensor_rows(tensors, path.name)
    report.values = readable_values(file.state)
    report.args = args_table(file.state)
    report.storage = storage_facts(file.storages.values(), tensors.values())
    report.globals = global_rows([(path.name, dict(file.globals))])
    report.evidence = [Evidence(file.kind, words) for words in file.notes]
    report.findings = [*unsafe_globals(report.globals), *_bloat(report)]
    if file.crc_disabled:
        report.findings.append(Finding("note", "no record has a CRC-32: its writer had it disabled", path.name))
    _add_model(report, file)
    return report, tensors


def _title(file: StoredFile) -> str:
    keys = set(file.state) if isinstance(file.state, dict) else set()
    what = {"torch zip": "torch file", "torch before 1.6": "torch file of before 1.6"}.get(file.kind, file.kind)
    if "optimizer_state_dict" in keys:
        return f"{what}: DeepSpeed optimizer shard"
    if "param_shapes" in keys or "ds_config" in keys:
        return f"{what}: DeepSpeed model states of one rank"
    if {"model", "checkpoint_version"} <= keys or {"model0", "checkpoint_version"} <= keys:
        return f"{what}: Megatron-LM states of one rank"
    return what


def _bloat(report: InspectionReport) -> list[Finding]:
    unused = (report.storage or {}).get("unused_nbytes", 0)
    stored = (report.storage or {}).get("stored_nbytes", 0)
    if unused < _BLOAT_NBYTES or unused < _BLOAT_SHARE * stored:
        return []
    words = f"{unused} of {stored} stored bytes belong to no tensor: whole storages were saved for views of them"
    return [
        Finding("warning", words, report.files[0].path, "save clones of the tensors, or convert: it leaves them out")
    ]


def _add_model(report: InspectionReport, file: StoredFile) -> None:
    """Add the facts about a model that a single file has; they are those of its rank."""
    guess = guess_family(row.parameter or row.name for row in report.tensors)
    if guess is not None:
        report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    args = report.args or {}
    layers = {row.layer for row in report.tensors if row.layer is not None}
    if guess is None and not args:
        return
    iteration = file.state.get("iteration") if isinstance(file.state, dict) else None
    report.model = ModelFacts(
        family=guess.family if guess else None,
        iteration=iteration if isinstance(iteration, int) else None,
        num_layers=count(args, "num_layers") or len(layers) or None,
        hidden=count(args, "hidden_size"),
        ffn=count(args, "ffn_hidden_size"),
        heads=count(args, "num_attention_heads"),
        kv_groups=count(args, "num_query_groups", "num_key_value_heads"),
        positions=count(args, "max_position_embeddings"),
    )
