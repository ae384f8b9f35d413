"""A Megatron-Core ``torch_dist`` folder, or any other of ``torch.distributed.checkpoint``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.dcp.reader import DistributedCheckpoint, open_distributed
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import StreamconvError
from streamconv.core.lazy import LazyTensor
from streamconv.inspection.names import count, guess_family, place_of
from streamconv.inspection.opening import global_rows, joined_globals, open_all, unsafe_globals
from streamconv.inspection.report import (
    BROKEN,
    Evidence,
    FileRow,
    Finding,
    ModelFacts,
    ParallelFacts,
    Report,
    TensorRow,
    Vocabulary,
    finding_of,
)
from streamconv.inspection.stored import first_byte, tensor_rows
from streamconv.inspection.values import args_table, readable, readable_values
from streamconv.models.config.training_args import neutral_args

__all__ = ["by_layer", "describe_torch_dist", "is_torch_dist"]

_COMMON, _CONFIG = "common.pt", "metadata.json"
_COPY = "copy the missing file from the training run's storage"
_COMMON_OBJECT = "common_state/shard_0_1"
# Homogeneous models: all layers in one tensor, the layer its first axis
# [megatron/core/transformer/transformer_block.py:sharded_state_dict].
_STACKED = re.compile(r"(.*\blayers)\.(?!\d+\.)(.+)")
# __<rank>_<part>.distcp [torch/distributed/checkpoint/planner_helpers.py, filesystem.py].
_WRITER = re.compile(r"__(\d+)_\d+\.distcp")


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder is one: it has ``.metadata``, or at least ``.distcp`` files."""
    return folder.is_dir() and ((folder / ".metadata").is_file() or any(folder.glob("*.distcp")))


def describe_torch_dist(folder: Path, report: Report) -> dict[str, LazyTensor]:
    """Fill a report from a folder of ``.distcp`` files; returns its tensors by name."""
    names = sorted(path.name for path in folder.glob("*.distcp"))
    is_megatron = (folder / _COMMON).is_file() or (folder / _CONFIG).is_file()
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
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        held = checkpoint.files.get(path.name, ())
        kind = "distcp" if path.suffix == ".distcp" else "other"
        report.files.append(FileRow(path.name, path.stat().st_size, kind, len(held)))
    _add_model(folder, checkpoint, report)
    return checkpoint.tensors


def _one_by_one(folder: Path, names: list[str], report: Report) -> dict[str, LazyTensor]:
    files, broken = open_all(folder / name for name in names)
    report.findings += [finding for finding in broken if finding.where not in {f.where for f in report.findings}]
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        found = file.tensors()
        report.tensors += tensor_rows(found, file.path.name, f"{file.path.name}:")
        tensors |= {f"{file.path.name}:{name}": tensor for name, tensor in found.items()}
    opened = {file.path.name: len(file.tensors()) for file in files}
    for name in names:
        kind = "distcp" if name in opened else "cannot be opened"
        report.files.append(FileRow(name, (folder / name).stat().st_size, kind, opened.get(name, 0)))
    return tensors


def _objects(checkpoint: DistributedCheckpoint) -> Iterator[tuple[str, str]]:
    """The objects in words; those that are shards of one (``<name>/shard_0_4``) are one."""
    found: dict[str, list[tuple[str, int]]] = {}
    for name, place in checkpoint.objects.items():
        found.setdefault(name.rpartition("/shard_")[0] or name, []).append((name, place.nbytes))
    for base, shards in found.items():
        if len(shards) == 1:
            yield shards[0][0], f"object of {shards[0][1]} bytes"
        else:
            yield f"{base}/shard_*", f"{len(shards)} objects of {sum(nbytes for _, nbytes in shards)} bytes in all"


def _row(folder: Path, name: str, tensor: LazyTensor) -> TensorRow:
    paths = {view.storage.path.name for piece in tensor.pieces for view in piece.views}
    file = paths.pop() if len(paths) == 1 else f"{len(paths)} files"
    layer, parameter = place_of(name)
    return TensorRow(name, file, str(tensor.dtype), tensor.shape, tensor.nbytes, first_byte(tensor), layer, parameter)


def _common_state(folder: Path, checkpoint: DistributedCheckpoint, report: Report) -> Mapping[str, Any]:
    """The state beside the tensors: ``common.pt``, or since 2026-07 an object."""
    try:
        if (folder / _COMMON).is_file():
            file = open_torch(folder / _COMMON)
            added = global_rows([(_COMMON, dict(file.globals))])
            report.globals = joined_globals([*report.globals, *added])
            report.findings += unsafe_globals(added)
            state = file.state
        elif _COMMON_OBJECT in checkpoint.objects:
            state = checkpoint.value(_COMMON_OBJECT)
            # Objects are saved as lists of one [megatron/core/dist_checkpointing/serialization.py].
            state = state[0] if isinstance(state, list) and len(state) == 1 else state
        else:
            if (folder / _CONFIG).is_file():
                what = f"neither {_COMMON} nor the object {_COMMON_OBJECT}: Megatron-Core loads no checkpoint without"
                report.findings.append(Finding("damage", what, str(folder), _COPY, BROKEN))
            return {}
    except StreamconvError as error:
        report.findings.append(finding_of(error, "damage"))
        return {}
    return state if isinstance(state, dict) else {}


def _add_model(folder: Path, checkpoint: DistributedCheckpoint, report: Report) -> None:
    state = _common_state(folder, checkpoint, report)
    report.values |= readable_values(state)
    report.args = args_table(state)
    guess = guess_family(row.parameter or row.name for row in report.tensors)
    if guess is None:
        return
    report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    tensors, args = checkpoint.tensors, report.args or {}
    parameters = {name: t for name, t in tensors.items() if not name.startswith("optimizer.")}
    stacked = {tensor.shape[0] for name, tensor in parameters.items() if _STACKED.fullmatch(name) and tensor.shape}
    numbered = {row.layer for row in report.tensors if row.layer is not None}
    words = next((t for name, t in parameters.items() if name.endswith("word_embeddings.weight")), None)
    number = next(iter(stacked)) if len(stacked) == 1 and not numbered else len(numbered) or None
    in_layers = sum(t.numel for name, t in parameters.items() if _STACKED.fullmatch(name))
    iteration = state.get("iteration")
    report.model = ModelFacts(
        family=guess.family,
        iteration=iteration if isinstance(iteration, int) else None,
        num_layers=count(args, "num_layers") or number,
        hidden=count(args, "hidden_size") or (words.shape[1] if words and len(words.shape) == 2 else None),
        ffn=count(args, "ffn_hidden_size"),
        heads=count(args, "num_attention_heads"),
        kv_groups=count(neutral_args(args), "num_key_value_heads", "num_attention_heads"),
        vocabulary=Vocabulary(words.shape[0] if words else None),
        positions=count(args, "max_position_embeddings"),
        parameters=sum(tensor.numel for tensor in parameters.values()),
        parameters_per_layer=in_layers // number if number and in_layers else None,
    )
    report.parallel = _parallel(checkpoint, words, args, report)
    report.values = {name: readable(value) for name, value in report.values.items()}


def _parallel(
    checkpoint: DistributedCheckpoint, words: LazyTensor | None, args: Mapping[str, Any], report: Report
) -> ParallelFacts:
    """The layout that wrote it, which no reader needs: args say it, or the chunks of the word embeddings say TP."""
    writers = {match[1] for name in checkpoint.files if (match := _WRITER.fullmatch(name))}
    if writers:
        report.evidence.append(Evidence(f"written by {len(writers)} ranks", "the names of the .distcp files"))
    tp = count(args, "tensor_model_parallel_size")
    if tp is None and words is not None:
        tp = len({piece.start[0] for piece in words.pieces})
        report.evidence.append(Evidence(f"TP {tp}", "the chunks of the word embeddings"))
    return ParallelFacts(tp, count(args, "pipeline_model_parallel_size"), count(args, "data_parallel_size"))


def by_layer(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors, those that stack all layers cut into one for each: ``decoder.layers.3.mlp.linear_fc1.weight``."""
    for name, tensor in tensors.items():
        match = _STACKED.fullmatch(name)
        if match is None or not tensor.shape:
            yield name, tensor
            continue
        for layer in range(tensor.shape[0]):
            yield f"{match[1]}.{layer}.{match[2]}", tensor.slice(0, layer, layer + 1)
