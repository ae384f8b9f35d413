"""Describe a Megatron-Core ``torch_dist`` folder, or any other of ``torch.distributed.checkpoint``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.dcp.metadata_reader import NAME as METADATA
from streamconv.containers.dcp.reader import DistributedCheckpoint, open_distributed
from streamconv.core.errors import StreamconvError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import COPY_AGAIN
from streamconv.formats.common.layer_numbers import place_of
from streamconv.formats.megatron.core.common_state import read_common_state
from streamconv.formats.megatron.core.names import (
    COMMON_FILE,
    COMMON_STATE_OBJECT,
    MOST_LAYERS,
    is_stack,
    name_in_stack,
)
from streamconv.formats.megatron.folder import CONFIG_FILE
from streamconv.inspection.names import count, guess_family
from streamconv.inspection.opening import global_rows, joined_globals, open_all, unsafe_globals
from streamconv.inspection.report import (
    BROKEN,
    Evidence,
    FileRow,
    Finding,
    InspectionReport,
    ModelFacts,
    ParallelFacts,
    TensorRow,
    Vocabulary,
    finding_of,
)
from streamconv.inspection.stored import first_byte, tensor_rows
from streamconv.inspection.values import args_table, readable, readable_values
from streamconv.models.config.training_args import neutral_args

__all__ = ["by_layer", "describe_torch_dist", "is_torch_dist"]

# __<rank>_<part>.distcp [torch/distributed/checkpoint/planner_helpers.py, filesystem.py].
_WRITER = re.compile(r"__([0-9]+)_[0-9]+\.distcp")


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder is one of ``torch.distributed.checkpoint``: it has ``.metadata`` or ``.distcp`` files."""
    return folder.is_dir() and ((folder / METADATA).is_file() or any(folder.glob("*.distcp")))


def describe_torch_dist(folder: Path, report: InspectionReport) -> dict[str, LazyTensor]:
    """Fill a report from a folder of ``.distcp`` files; returns its tensors by name."""
    names = sorted(path.name for path in folder.glob("*.distcp"))
    is_megatron = (folder / COMMON_FILE).is_file() or (folder / CONFIG_FILE).is_file()
    report.what = "Megatron-Core, torch_dist" if is_megatron else "torch.distributed.checkpoint"
    report.evidence.append(
        Evidence(report.what, f"{len(names)} .distcp files, .metadata" + ", metadata.json" * is_megatron)
    )
    try:
        checkpoint = open_distributed(folder)
    except StreamconvError as error:
        report.findings.append(finding_of(error, "damage"))
        return _one_by_one(folder, names, report)
    report.tensors = [_row(folder, name, tensor) for name, tensor in checkpoint.tensors.items()]
    report.values = dict(_objects(checkpoint))
    report.globals = global_rows([(".metadata and the items", dict(checkpoint.globals))])
    report.findings += unsafe_globals(report.globals)
    report.evidence += [Evidence(METADATA, words) for words in checkpoint.notes]
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        held = checkpoint.files.get(path.name, ())
        kind = "distcp" if path.suffix == ".distcp" else "other"
        report.files.append(FileRow(path.name, path.stat().st_size, kind, len(held)))
    _add_model(folder, checkpoint, report)
    return checkpoint.tensors


def _one_by_one(folder: Path, names: list[str], report: InspectionReport) -> dict[str, LazyTensor]:
    files, broken = open_all(folder / name for name in names)
    report.findings += [finding for finding in broken if finding.where not in {f.where for f in report.findings}]
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        stored = file.tensors()
        report.tensors += tensor_rows(stored, file.path.name, f"{file.path.name}:")
        tensors |= {f"{file.path.name}:{name}": tensor for name, tensor in stored.items()}
    opened = {file.path.name: len(file.tensors()) for file in files}
    for name in names:
        kind = "distcp" if name in opened else "cannot be opened"
        report.files.append(FileRow(name, (folder / name).stat().st_size, kind, opened.get(name, 0)))
    return tensors


def _objects(checkpoint: DistributedCheckpoint) -> Iterator[tuple[str, str]]:
    """(name, words) of the objects; the shards of an object (``<name>/shard_0_4``) are joined."""
    by_base: dict[str, list[tuple[str, int]]] = {}
    for name, place in checkpoint.objects.items():
        by_base.setdefault(name.rpartition("/shard_")[0] or name, []).append((name, place.nbytes))
    for base, shards in by_base.items():
        if len(shards) == 1:
            yield shards[0][0], f"object of {shards[0][1]} bytes"
        else:
            yield f"{base}/shard_*", f"{len(shards)} objects of {sum(nbytes for _, nbytes in shards)} bytes in all"


def _row(folder: Path, name: str, tensor: LazyTensor) -> TensorRow:
    paths = {view.storage.path.name for piece in tensor.pieces for view in piece.views}
    file = paths.pop() if len(paths) == 1 else f"{len(paths)} files"
    layer, parameter = place_of(name)
    return TensorRow(name, file, str(tensor.dtype), tensor.shape, tensor.nbytes, first_byte(tensor), layer, parameter)


def _common_state(folder: Path, checkpoint: DistributedCheckpoint, report: InspectionReport) -> Mapping[str, Any]:
    """The state beside the tensors; empty, with a finding, if it cannot be read or is missing."""
    try:
        common = read_common_state(folder, checkpoint)
    except StreamconvError as error:
        report.findings.append(finding_of(error, "damage"))
        return {}
    if common.named:
        added = global_rows([(COMMON_FILE, dict(common.named))])
        report.globals = joined_globals([*report.globals, *added])
        report.findings += unsafe_globals(added)
    if not common.is_there and (folder / CONFIG_FILE).is_file():
        what = f"neither {COMMON_FILE} nor the object {COMMON_STATE_OBJECT}: Megatron-Core loads no checkpoint without"
        report.findings.append(Finding("damage", what, str(folder), COPY_AGAIN, BROKEN))
    return common.state


def _add_model(folder: Path, checkpoint: DistributedCheckpoint, report: InspectionReport) -> None:
    state = _common_state(folder, checkpoint, report)
    report.values |= readable_values(state)
    report.args = args_table(state)
    guess = guess_family(row.parameter or row.name for row in report.tensors)
    if guess is None:
        return
    report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    tensors, args = checkpoint.tensors, report.args or {}
    parameters = {name: t for name, t in tensors.items() if not name.startswith("optimizer.")}
    stacked = {tensor.shape[0] for name, tensor in parameters.items() if is_stack(name) and tensor.shape}
    numbered = {row.layer for row in report.tensors if row.layer is not None}
    words = next((t for name, t in parameters.items() if name.endswith("word_embeddings.weight")), None)
    number = next(iter(stacked)) if len(stacked) == 1 and not numbered else len(numbered) or None
    in_layers = sum(t.numel for name, t in parameters.items() if is_stack(name))
    iteration = state.get("iteration")
    report.model = ModelFacts(
        family=guess.family,
        iteration=iteration if isinstance(iteration, int) else None,
        num_layers=count(args, "num_layers") or number,
        hidden=count(args, "hidden_size") or (words.shape[1] if words and len(words.shape) == 2 else None),
        ffn=count(args, "ffn_hidden_size"),
        heads=count(args, "num_attention_heads"),
        kv_groups=count(neutral_args(args), "num_key_value_heads", "num_attention_heads"),
        vocabulary=Vocabulary(words.shape[0] if words and words.shape else None),
        positions=count(args, "max_position_embeddings"),
        parameters=sum(tensor.numel for tensor in parameters.values()),
        parameters_per_layer=in_layers // number if number and in_layers else None,
    )
    report.parallel = _parallel(checkpoint, words, args, report)
    report.values = {name: readable(value) for name, value in report.values.items()}


def _parallel(
    checkpoint: DistributedCheckpoint, words: LazyTensor | None, args: Mapping[str, Any], report: InspectionReport
) -> ParallelFacts:
    """The layout that wrote the folder: by args, or TP by the chunks of the word embeddings. No reader needs it."""
    writers = {match[1] for name in checkpoint.files if (match := _WRITER.fullmatch(name))}
    if writers:
        report.evidence.append(Evidence(f"written by {len(writers)} ranks", "the names of the .distcp files"))
    tp = count(args, "tensor_model_parallel_size")
    if tp is None and words is not None:
        tp = len({piece.start[0] for piece in words.pieces})
        report.evidence.append(Evidence(f"TP {tp}", "the chunks of the word embeddings"))
    return ParallelFacts(tp, count(args, "pipeline_model_parallel_size"), count(args, "data_parallel_size"))


def by_layer(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors, with stacks of layers cut into one for each layer: ``decoder.layers.3.mlp.linear_fc1.weight``."""
    for name, tensor in tensors.items():
        if not is_stack(name) or not tensor.shape or tensor.shape[0] > MOST_LAYERS:
            yield name, tensor
            continue
        for layer in range(tensor.shape[0]):
            yield name_in_stack(name, layer), tensor.slice(0, layer, layer + 1)
