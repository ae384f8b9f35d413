"""Describe a folder as a set of checkpoint files: Hugging Face's, DeepSpeed's universal checkpoint, or any others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from streamconv.containers.dcp.metadata_reader import NAME as METADATA
from streamconv.containers.json_file import read_config
from streamconv.containers.open_any import checkpoint_files
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import SourceError, StreamconvError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.adapter_files import ADAPTER_CONFIG
from streamconv.formats.common.faults import COPY_AGAIN, Collected, listed
from streamconv.formats.huggingface.names import CONFIG, INDEX_SUFFIX, WEIGHTS
from streamconv.formats.huggingface.weights import Disagreements, check_shards, read_index, weight_files
from streamconv.formats.peft.source import claims as adapter_file
from streamconv.inspection.names import count, guess_family
from streamconv.inspection.opening import broken_file, global_rows, open_all, unsafe_globals
from streamconv.inspection.report import (
    BROKEN,
    Evidence,
    FileRow,
    Finding,
    InspectionReport,
    ModelFacts,
    Vocabulary,
    finding_of,
)
from streamconv.inspection.stored import tensor_rows
from streamconv.models.registry import known_families

__all__ = ["describe_file_set"]

# As transformers names the shards of a model [transformers/modeling_utils.py:save_pretrained].
_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(\.[a-z]+)")


def describe_file_set(
    folder: Path, refusal: StreamconvError | None, report: InspectionReport, without: Sequence[str] = ()
) -> dict[str, LazyTensor]:
    """Fill a report from all checkpoint files below a folder; returns their tensors by file and name.

    Args:
        folder: where they are.
        refusal: why no format opened the folder, None if one did.
        report: the report to fill.
        without: folders below that are other checkpoints, which are not looked into.

    Raises:
        SourceError: there is no checkpoint file.
    """
    apart = tuple(folder / name for name in without)
    paths = [path for path in checkpoint_files(folder) if not any(path.is_relative_to(each) for each in apart)]
    if not paths:
        raise SourceError("no checkpoint file in the folder", where=folder, remedy=refusal.remedy if refusal else None)
    names = [str(path.relative_to(folder)) for path in paths]
    adapter = adapter_file(folder)
    report.what, report.evidence = _kind(folder, names, adapter)
    files, broken = open_all(paths)
    report.findings += broken
    is_hugging_face, faults = report.what.startswith("Hugging Face"), Collected()
    chosen = next(iter(weight_files(folder)), "")
    config, beside, doubts = _read_descriptions(folder, chosen, files, faults) if is_hugging_face else ({}, [], None)
    own = _own_files(names, chosen, beside) if is_hugging_face else {adapter} if adapter else set()
    is_named = isinstance(refusal, UnsupportedError) and report.what != "a folder of checkpoint files"
    known = faults.knows(refusal) or refusal.where in {finding.where for finding in broken} if refusal else True
    report.findings += [] if refusal is None or is_named or known else [finding_of(refusal)]
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        name, stored = str(file.path.relative_to(folder)), file.tensors()
        prefix = "" if name in own else f"{name}:"
        report.tensors += tensor_rows(stored, name, prefix)
        tensors |= {f"{prefix}{key}": tensor for key, tensor in stored.items()}
    _add_files(folder, paths, files, report)
    if is_hugging_face and not (folder / CONFIG).is_file():
        report.findings.append(Finding("note", f"no {CONFIG}: sizes come from the tensors", str(folder)))
    if beside:
        words = f"the index does not name {listed(beside, len(beside))}: transformers does not read what is in there"
        report.findings.append(Finding("note", words, str(folder)))
    if doubts is not None:
        report.findings += _index_findings(doubts, str(folder / chosen), is_opened=refusal is None)
    report.findings += [broken_file(path, error) for path, error in faults.unopened.items()]
    report.findings += [finding_of(fault) for fault in faults.found]
    if not faults:
        lost = _missing(paths, folder, set() if chosen.endswith(INDEX_SUFFIX) else own or set(names))
        report.findings += [Finding("damage", what, str(folder), COPY_AGAIN, BROKEN) for what in lost]
    _add_model(report, config, own)
    return tensors


def _missing(paths: Sequence[Path], folder: Path, meant: set[str]) -> Iterator[str]:
    """What is missing by the names of the files alone: shards, of which no index says how many there are, among the
    files that are ``meant``, and the description of distributed files.
    """
    shards: dict[tuple[str, str, str], set[int]] = {}
    for path in paths:
        name = str(path.relative_to(folder))
        if name in meant and (match := _SHARD.fullmatch(name)):
            shards.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (stem, of, suffix), there in shards.items():
        lost = (f"{stem}-{number:05d}-of-{of}{suffix}" for number in range(1, int(of) + 1) if number not in there)
        if missing := int(of) - len(there):
            yield f"{missing} of {int(of)} shards are missing: {listed(lost, missing)}"
    distributed = sorted({path.parent for path in paths if path.suffix == ".distcp"})
    for parent in distributed:
        if not (parent / METADATA).is_file():
            yield f"there is no {METADATA} beside the .distcp files, and it says what they hold"


def _own_files(names: Sequence[str], chosen: str, beside: Sequence[str]) -> set[str]:
    """The files that hold a Hugging Face model: those that the ``chosen`` index names, or the chosen file, or, without
    either, all of the first kind that is there.
    """
    if chosen.endswith(INDEX_SUFFIX):
        return set(names) - set(beside)
    suffix = next((kind for kind in (".safetensors", ".bin") if any(name.endswith(kind) for name in names)), "")
    return {chosen} if chosen else {name for name in names if name.endswith(suffix) and "/" not in name}


def _read_descriptions(
    folder: Path, chosen: str, files: Sequence[StoredFile], faults: Collected
) -> tuple[Mapping[str, Any], list[str], Disagreements | None]:
    """The ``config.json`` of a Hugging Face model, the files that its index does not name, and what else the index and
    the shards do not agree on, None without an index.
    """
    path, beside, doubts = folder / CONFIG, [], None
    config = faults.opened(path, read_config) if path.is_file() else None
    if chosen.endswith(INDEX_SUFFIX):
        weight_map = faults.opened(folder / chosen, lambda index: read_index(index, faults))
        named = set((weight_map or {}).values())
        stored = {str(file.path.relative_to(folder)): file.tensors() for file in files}
        if weight_map is not None:
            opened = {name: stored[name] for name in stored if name in named}
            doubts = check_shards(folder / chosen, weight_map, opened, faults)
            beside = [name for name in stored if name not in named]
    return config or {}, beside, doubts


def _index_findings(found: Disagreements, where: str, *, is_opened: bool) -> Iterator[Finding]:
    """What an index and its shards do not agree on; a model that ``is_opened`` needs nothing that is lost."""
    yield from (Finding("warning", words, where) for words in (found.unlisted, found.moved) if words)
    if found.lost and is_opened:
        yield Finding("warning", f"{found.lost}, and the model has none of them", where)
    elif found.lost:
        yield Finding("damage", found.lost, where, COPY_AGAIN, BROKEN)


def _kind(folder: Path, names: Sequence[str], adapter: str | None) -> tuple[str, list[Evidence]]:
    if adapter is not None:
        words = f"{adapter}, {ADAPTER_CONFIG}" if (folder / ADAPTER_CONFIG).is_file() else adapter
        return "an adapter (PEFT)", [Evidence("an adapter (PEFT)", words)]
    has = set(names).__contains__
    safetensors, torch_file = WEIGHTS
    indexes = [kind + INDEX_SUFFIX for kind in WEIGHTS if (folder / (kind + INDEX_SUFFIX)).is_file()]
    if indexes or has(safetensors):
        return "Hugging Face", [Evidence("Hugging Face", next(iter(indexes), safetensors))]
    if has(torch_file) or any(name.startswith("pytorch_model-") for name in names):
        config = (folder / CONFIG).is_file()
        what = "Hugging Face" if config else "Hugging Face or the output of DeepSpeed's zero_to_fp32"
        return what, [Evidence(what, f"pytorch_model*.bin{' and config.json' if config else ', no config.json'}")]
    if (folder / "zero").is_dir():
        return "DeepSpeed, universal checkpoint", [Evidence("universal checkpoint", "zero/<parameter>/*.pt")]
    if any(name.endswith(".safetensors") for name in names):
        return "Hugging Face", [Evidence("safetensors files", f"{len(names)} of them, no index")]
    return "a folder of checkpoint files", [Evidence("files", f"{len(names)} of torch's or other containers")]


def _add_files(folder: Path, paths: Sequence[Path], files: Sequence[StoredFile], report: InspectionReport) -> None:
    opened = {file.path: file for file in files}
    for path in paths:
        file = opened.get(path)
        row = (file.kind, len(file.tensors())) if file else ("cannot be opened", 0)
        report.files.append(FileRow(str(path.relative_to(folder)), path.stat().st_size, *row))
    report.globals = global_rows([(str(file.path.relative_to(folder)), dict(file.globals)) for file in files])
    report.findings += unsafe_globals(report.globals)


def _add_model(report: InspectionReport, config: Mapping[str, Any], own: set[str]) -> None:
    """Add the facts about the model; those that are counts of tensors are of its ``own`` files, if these are known."""
    rows, unique = [row for row in report.tensors if not own or row.file in own], bool(own)
    guess = guess_family(row.parameter or row.name for row in rows)
    if guess is not None:
        report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    if guess is None and not config:
        return
    layers = {row.layer for row in rows if row.layer is not None}
    stored = next((r.shape[0] for r in rows if _is_words(r.name) and len(r.shape) == 2), None)
    true = count(config, "vocab_size")
    sizes: dict[int | None, int] = {}
    for row in rows:
        sizes[row.layer] = sizes.get(row.layer, 0) + prod(row.shape)
    layer_sizes = {size for layer, size in sizes.items() if layer is not None}
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
        parameters_per_layer=layer_sizes.pop() if unique and len(layer_sizes) == 1 else None,
    )


def _family(config: Mapping[str, Any]) -> str | None:
    """The family that a configuration names: its title if it is translated, else its ``model_type``."""
    kind = config.get("model_type")
    titles = {family.huggingface.model_type: family.title for family in known_families()}
    return titles.get(kind, kind) if isinstance(kind, str) else None


def _is_words(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"))
