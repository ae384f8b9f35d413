"""A folder of checkpoint files that no format claims: Hugging Face's, DeepSpeed's universal one, or just files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from streamconv.containers.open_any import checkpoint_files
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import SourceError, StreamconvError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.inspection.names import count, guess_family
from streamconv.inspection.opening import global_rows, open_all, unsafe_globals
from streamconv.inspection.report import Evidence, FileRow, Finding, ModelFacts, Report, Vocabulary, finding_of
from streamconv.inspection.stored import tensor_rows
from streamconv.models.registry import known_families

__all__ = ["describe_file_set"]

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LARGEST_JSON = 64 << 20
_COPY = "download or copy it again"


def describe_file_set(folder: Path, refusal: StreamconvError | None, report: Report) -> dict[str, LazyTensor]:
    """Fill a report from all checkpoint files below a folder; returns their tensors by file and name.

    Args:
        folder: where they are.
        refusal: what the formats said of the folder, None if it was opened.
        report: is filled.

    Raises:
        SourceError: there is no such file.
    """
    paths = checkpoint_files(folder)
    if not paths:
        raise SourceError("no checkpoint file in the folder", where=folder, remedy=refusal.remedy if refusal else None)
    names = [str(path.relative_to(folder)) for path in paths]
    report.what, report.evidence = _kind(folder, names)
    files, broken = open_all(paths)
    report.findings += broken
    is_named = isinstance(refusal, UnsupportedError) and report.what != "a folder of checkpoint files"
    if refusal is not None and not is_named:
        known = {finding.where for finding in broken}
        report.findings += [] if refusal.where in known else [finding_of(refusal)]
    tensors: dict[str, LazyTensor] = {}
    is_hugging_face = report.what.startswith("Hugging Face")
    for file in files:
        name, found = str(file.path.relative_to(folder)), file.tensors()
        prefix = "" if is_hugging_face else f"{name}:"
        report.tensors += tensor_rows(found, name, prefix)
        tensors |= {f"{prefix}{key}": tensor for key, tensor in found.items()}
    _add_files(folder, paths, files, report)
    config = _config(folder, report) if is_hugging_face else {}
    if is_hugging_face:
        report.findings += _index_findings(folder, report)
    _add_model(report, config, is_hugging_face)
    return tensors


def _kind(folder: Path, names: Sequence[str]) -> tuple[str, list[Evidence]]:
    has = set(names).__contains__
    if any((folder / index).is_file() for index in _INDEXES) or has("model.safetensors"):
        found = next((index for index in _INDEXES if (folder / index).is_file()), "model.safetensors")
        return "Hugging Face", [Evidence("Hugging Face", found)]
    if has("pytorch_model.bin") or any(name.startswith("pytorch_model-") for name in names):
        config = (folder / "config.json").is_file()
        what = "Hugging Face" if config else "Hugging Face or the output of DeepSpeed's zero_to_fp32"
        return what, [Evidence(what, f"pytorch_model*.bin{' and config.json' if config else ', no config.json'}")]
    if (folder / "zero").is_dir():
        return "DeepSpeed, universal checkpoint", [Evidence("universal checkpoint", "zero/<parameter>/*.pt")]
    if any(name.endswith(".safetensors") for name in names):
        return "Hugging Face", [Evidence("safetensors files", f"{len(names)} of them, no index")]
    return "a folder of checkpoint files", [Evidence("files", f"{len(names)} of torch's or other containers")]


def _add_files(folder: Path, paths: Sequence[Path], files: Sequence[StoredFile], report: Report) -> None:
    opened = {file.path: file for file in files}
    for path in paths:
        file = opened.get(path)
        row = (file.kind, len(file.tensors())) if file else ("cannot be opened", 0)
        report.files.append(FileRow(str(path.relative_to(folder)), path.stat().st_size, *row))
    report.globals = global_rows([(str(file.path.relative_to(folder)), dict(file.globals)) for file in files])
    report.findings += unsafe_globals(report.globals)


def _read_json(path: Path, report: Report) -> dict[str, Any]:
    """A JSON object of a checkpoint, empty with a finding if it is none."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        report.findings.append(Finding("damage", f"not JSON: {error}", str(path), _COPY, 6))
        return {}
    if isinstance(found, dict):
        return found
    report.findings.append(Finding("damage", f"not a JSON object but a {type(found).__name__}", str(path), _COPY, 6))
    return {}


def _config(folder: Path, report: Report) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        report.findings.append(Finding("note", "no config.json: sizes come from the tensors", str(folder)))
        return {}
    return _read_json(path, report)


def _index_findings(folder: Path, report: Report) -> list[Finding]:
    """Where the index and the shards disagree: a shard or a tensor that is missing, one that nobody names."""
    path = next((folder / index for index in _INDEXES if (folder / index).is_file()), None)
    found = _read_json(path, report).get("weight_map") if path else None
    if path is None or not isinstance(found, dict):
        return []
    there = {(row.file, row.name) for row in report.tensors}
    files = {row.path for row in report.files}
    wanted = {(str(file), str(name)) for name, file in found.items()}
    lost_shards = sorted({file for file, _ in wanted} - files)
    findings = [Finding("damage", f"the shard {shard} is missing", str(path), _COPY, 6) for shard in lost_shards]
    for what, lost in (("not where the index says", wanted - there), ("not in the index", there - wanted)):
        lost = {pair for pair in lost if pair[0] in files}
        if lost:
            file, name = min(lost)
            findings.append(
                Finding("damage", f"{len(lost)} tensors are {what}, the first is {name} of {file}", str(path), _COPY, 6)
            )
    return findings


def _add_model(report: Report, config: Mapping[str, Any], unique: bool) -> None:
    guess = guess_family(row.parameter or row.name for row in report.tensors)
    if guess is not None:
        report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    if guess is None and not config:
        return
    layers = {row.layer for row in report.tensors if row.layer is not None}
    stored = next((r.shape[0] for r in report.tensors if _is_words(r.name) and len(r.shape) == 2), None)
    true = count(config, "vocab_size")
    sizes: dict[int | None, int] = {}
    for row in report.tensors:
        sizes[row.layer] = sizes.get(row.layer, 0) + prod(row.shape)
    each = {size for layer, size in sizes.items() if layer is not None}
    report.model = ModelFacts(
        family=_family(config) or (guess.family if guess else None),
        num_layers=count(config, "num_hidden_layers", "n_layer") or len(layers) or None,
        hidden=count(config, "hidden_size", "n_embd"),
        ffn=count(config, "intermediate_size", "n_inner"),
        heads=count(config, "num_attention_heads", "n_head"),
        kv_groups=count(config, "num_key_value_heads"),
        vocabulary=Vocabulary(stored, true, stored - true if stored is not None and true is not None else None),
        positions=count(config, "max_position_embeddings", "n_positions"),
        parameters=sum(sizes.values()) if unique else None,
        parameters_per_layer=each.pop() if unique and len(each) == 1 else None,
    )


def _family(config: Mapping[str, Any]) -> str | None:
    """The family that a configuration names: its title if it is translated, else what it is called there."""
    kind = config.get("model_type")
    titles = {family.huggingface.model_type: family.title for family in known_families()}
    return titles.get(kind, kind) if isinstance(kind, str) else None


def _is_words(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"))
