"""Describe a DeepSpeed folder that does not open as a model: its family is not translated, or it is broken."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.core.errors import StreamconvError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.deepspeed.names import FolderNames
from streamconv.formats.survey import Survey
from streamconv.inspection.names import count, guess_family
from streamconv.inspection.opening import broken_file, global_rows, open_all, unfinished_zips, unsafe_globals
from streamconv.inspection.report import (
    Evidence,
    FileRow,
    Finding,
    InspectionReport,
    ModelFacts,
    OptimizerFacts,
    ParallelFacts,
    Vocabulary,
    finding_of,
)
from streamconv.inspection.stored import tensor_rows
from streamconv.inspection.values import readable
from streamconv.io.reading import nbytes_there

__all__ = ["OWN_OPTIMIZER", "describe_parts", "optimizer_facts"]

OWN_OPTIMIZER = "in the ranks' own files"
# What DeepSpeed's parameters of experts have in their names [deepspeed/moe/experts.py, sharded_moe.py].
_EXPERT = ".deepspeed_moe.experts."


def optimizer_facts(
    folder: Path, names: FolderNames
) -> tuple[OptimizerFacts, list[Finding], list[tuple[str, dict[Global, int]]]]:
    """Describe the optimizer files of a folder. All are checked for a complete zip; only the first is opened.

    Returns:
        the facts (the first file's, for all), findings for broken files, and the classes and functions that the opened
        files name.
    """
    files = [names.optimizer[place] for place in sorted(names.optimizer)]
    if not files:
        return OptimizerFacts(False, 0, 0, "none"), [], []
    findings, others = unfinished_zips(folder, files)
    nbytes = nbytes_there(folder / name for name in files)
    opened, broken = open_all(folder / name for name in dict.fromkeys([files[0], *others]))
    known = {finding.where for finding in findings}
    findings += [finding for finding in broken if finding.where not in known]
    what = _optimizer_words(opened[0].state) if opened else "of unknown kind: its first file cannot be opened"
    named = [(file.path.name, dict(file.globals)) for file in opened]
    return OptimizerFacts(True, len(files), nbytes, what), findings, named


def _optimizer_words(state: Any) -> str:
    optimizer = state.get("optimizer_state_dict") if isinstance(state, dict) else None
    if not isinstance(optimizer, dict):
        return "of unknown kind"
    stage = optimizer.get("zero_stage")
    number = getattr(stage, "args", (stage,))
    words = f"ZeRO stage {number[0]}" if number and isinstance(number[0], int) else "BF16 optimizer or plain"
    master = [key for key in ("single_partition_of_fp32_groups", "fp32_flat_groups") if key in optimizer]
    return f"{words}{', fp32 master weights' if master else ''}{', Adam moments' if _has_moments(optimizer) else ''}"


def _has_moments(tree: Any, depth: int = 0) -> bool:
    if isinstance(tree, dict):
        return "exp_avg" in tree or (depth < 6 and any(_has_moments(item, depth + 1) for item in tree.values()))
    return isinstance(tree, list | tuple) and depth < 6 and any(_has_moments(item, depth + 1) for item in tree[:4])


def describe_parts(found: Survey, refusal: StreamconvError, report: InspectionReport) -> dict[str, LazyTensor]:
    """Fill a report from files that do not form a translated model, file by file; returns their tensors by file and
    name.
    """
    report.args = None if found.args is None else {name: readable(v) for name, v in sorted(found.args.items())}
    report.findings += [finding_of(fault) for fault in found.faults.found]
    report.findings += [broken_file(path, error) for path, error in found.faults.unopened.items()]
    if not found.faults.knows(refusal):
        report.findings.append(finding_of(refusal))
    files = dict(sorted(found.files.items()))
    report.globals = global_rows([(name, dict(file.globals)) for name, file in files.items()])
    report.findings += unsafe_globals(report.globals)
    tensors: dict[str, LazyTensor] = {}
    counts: dict[str, int] = {}
    for name, file in files.items():
        stored = file.tensors()
        counts[name] = len(stored)
        tensors |= {f"{name}:{key}": tensor for key, tensor in stored.items()}
        report.tensors += tensor_rows(stored, name, f"{name}:")
    for path in sorted(path for path in found.folder.iterdir() if path.is_file()):
        name = path.name
        kind = files[name].kind if name in files else "optimizer" if "optim" in name else "other"
        report.files.append(FileRow(name, path.stat().st_size, kind, counts.get(name, 0)))
    _add_facts(report, found)
    return tensors


def _add_facts(report: InspectionReport, surveyed: Survey) -> None:
    args, names = surveyed.args or {}, surveyed.names
    guess = guess_family(row.parameter or row.name for row in report.tensors)
    if guess is not None:
        report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    tp = names.tp or count(args, "tensor_model_parallel_size")
    report.parallel = ParallelFacts(tp, surveyed.pp, names.dp)
    matrices = (row for row in report.tensors if len(row.shape) == 2)
    words = next((row for row in matrices if row.name.endswith("word_embeddings.weight")), None)
    stored = words.shape[0] * (tp or 1) if words else None
    report.model = ModelFacts(
        family=guess.family if guess else None,
        iteration=surveyed.iteration,
        num_layers=count(args, "num_layers"),
        hidden=count(args, "hidden_size") or (words.shape[1] if words else None),
        ffn=count(args, "ffn_hidden_size"),
        heads=count(args, "num_attention_heads"),
        kv_groups=count(args, "num_key_value_heads", "num_query_groups", "num_attention_heads"),
        vocabulary=Vocabulary(stored),
        positions=count(args, "max_position_embeddings"),
        parameters=None if names.layers else _recorded_parameters(surveyed, tp or 1),
    )


def _recorded_parameters(surveyed: Survey, tp: int) -> int | None:
    """The number of parameters by ``param_shapes`` and ``frozen_param_shapes``, which plain DeepSpeed records for the
    whole model. Of experts they name those of one rank, and the files of experts have all.
    """
    groups = surveyed.ranks.state.get("param_shapes")
    if tp > 1 or not isinstance(groups, list | tuple) or (surveyed.names.experts and surveyed.faults):
        return None
    frozen = surveyed.ranks.state.get("frozen_param_shapes")
    recorded = [*groups, frozen]
    named = [(str(name), shape) for group in recorded if isinstance(group, dict) for name, shape in group.items()]
    shapes = [shape for name, shape in named if not (surveyed.names.experts and _EXPERT in name)]
    experts = sum(tensor.numel for file in surveyed.experts for tensor in file.tensors().values())
    # The file may come from anywhere, so a shape may be any value.
    sizes = [[size for size in shape if isinstance(size, int)] for shape in shapes if isinstance(shape, list | tuple)]
    return experts + sum(map(prod, sizes)) or None
