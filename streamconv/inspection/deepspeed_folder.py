"""A DeepSpeed folder: one that opens whole, one of a family that is not translated, and one that is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError, StreamconvError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.source import StoredModel
from streamconv.inspection.deepspeed_faults import faults_of, section_of, unfinished_zips
from streamconv.inspection.deepspeed_names import DeepSpeedNames
from streamconv.inspection.names import count, guess_family
from streamconv.inspection.opening import global_rows, open_all, unsafe_globals
from streamconv.inspection.report import (
    Evidence,
    FileRow,
    Finding,
    ModelFacts,
    OptimizerFacts,
    ParallelFacts,
    Report,
    Vocabulary,
    finding_of,
)
from streamconv.inspection.stored import tensor_rows
from streamconv.inspection.values import args_table
from streamconv.models.parameter import ParameterId, Section

__all__ = ["OWN_OPTIMIZER", "describe_parts", "optimizer_facts"]

OWN_OPTIMIZER = "in the ranks' own files"


def optimizer_facts(
    folder: Path, names: DeepSpeedNames
) -> tuple[OptimizerFacts, list[Finding], list[tuple[str, dict[Global, int]]]]:
    """What optimizer state there is in files of its own. All are checked to be whole; the first is opened and speaks
    for them.

    Returns:
        the facts, what is broken, and the classes and functions that the opened files name.
    """
    files = [names.optimizer[place] for place in sorted(names.optimizer)]
    if not files:
        return OptimizerFacts(False, 0, 0, "none"), [], []
    findings, others = unfinished_zips(folder, files)
    nbytes = sum((folder / name).stat().st_size for name in files)
    opened, broken = open_all(folder / name for name in dict.fromkeys([files[0], *others]))
    known = {finding.where for finding in findings}
    findings += [finding for finding in broken if finding.where not in known]
    what = _optimizer_words(opened[0].state) if opened else "of unknown kind: its first file cannot be opened"
    named = [(file.path.name, dict(file.globals)) for file in opened]
    return OptimizerFacts(True, len(files), nbytes, what), findings, named


def _optimizer_words(state: Any) -> str:
    found = state.get("optimizer_state_dict") if isinstance(state, dict) else None
    if not isinstance(found, dict):
        return "of unknown kind"
    stage = found.get("zero_stage")
    number = getattr(stage, "args", (stage,))
    words = f"ZeRO stage {number[0]}" if number and isinstance(number[0], int) else "BF16 optimizer or plain"
    master = [key for key in ("single_partition_of_fp32_groups", "fp32_flat_groups") if key in found]
    return f"{words}{', fp32 master weights' if master else ''}{', Adam moments' if _has_moments(found) else ''}"


def _has_moments(tree: Any, depth: int = 0) -> bool:
    if isinstance(tree, dict):
        return "exp_avg" in tree or (depth < 6 and any(_has_moments(item, depth + 1) for item in tree.values()))
    return isinstance(tree, list | tuple) and depth < 6 and any(_has_moments(item, depth + 1) for item in tree[:4])


def describe_parts(
    folder: Path, names: DeepSpeedNames, refusal: StreamconvError, report: Report
) -> tuple[StoredModel | None, dict[str, LazyTensor]]:
    """Fill a report from files that do not make a model that is translated, each opened by itself.

    Returns:
        the model, if all its parts are there (its family is just not translated), and all tensors by file and name.
    """
    main = [*names.layers.values(), *names.ranks.values(), *names.zero3.values()]
    files, broken = open_all(folder / name for name in sorted(main))
    ranks = [file for file in files if file.path.name in set(names.ranks.values()) | set(names.zero3.values())]
    opened = {file.path.name: file for file in files}
    report.args = next((table for file in ranks if (table := args_table(file.state))), None)
    own = [*faults_of(folder, names, opened, report.args), *broken]
    report.findings += own
    # The refusal is about the first of these faults, or about something else.
    if not (own and (isinstance(refusal, DamagedError) or refusal.where in {finding.where for finding in own})):
        report.findings.append(finding_of(refusal))
    report.globals = global_rows([(file.path.name, dict(file.globals)) for file in files])
    report.findings += unsafe_globals(report.globals)
    tensors: dict[str, LazyTensor] = {}
    counts: dict[str, int] = {}
    for file in files:
        found = file.tensors()
        counts[file.path.name] = len(found)
        tensors |= {f"{file.path.name}:{name}": tensor for name, tensor in found.items()}
        report.tensors += tensor_rows(found, file.path.name, f"{file.path.name}:")
    for name in sorted([*main, *names.optimizer.values(), *names.others]):
        kind = opened[name].kind if name in opened else "optimizer" if "optim" in name else "other"
        report.files.append(FileRow(name, (folder / name).stat().st_size, kind, counts.get(name, 0)))
    _add_facts(report, names, ranks)
    model = None if own or not names.layers else _as_model(folder, names, opened, report)
    return model, tensors


def _add_facts(report: Report, names: DeepSpeedNames, ranks: Sequence[StoredFile]) -> None:
    args = report.args or {}
    state: Mapping[str, Any] = next((file.state for file in ranks if isinstance(file.state, dict)), {})
    guess = guess_family(row.parameter or row.name for row in report.tensors)
    if guess is not None:
        report.evidence.append(Evidence(f"family {guess.family}", guess.evidence))
    tp = names.tp or count(args, "tensor_model_parallel_size")
    pp = names.model_ranks // tp if tp and names.ranks and names.layers else count(args, "pipeline_model_parallel_size")
    report.parallel = ParallelFacts(tp, pp, names.dp)
    iteration = state.get("iteration")
    words = next((row for row in report.tensors if row.name.endswith("word_embeddings.weight")), None)
    stored = words.shape[0] * (tp or 1) if words else None
    report.model = ModelFacts(
        family=guess.family if guess else None,
        iteration=iteration if isinstance(iteration, int) else _steps(state),
        num_layers=count(args, "num_layers"),
        hidden=count(args, "hidden_size") or (words.shape[1] if words else None),
        ffn=count(args, "ffn_hidden_size"),
        heads=count(args, "num_attention_heads"),
        kv_groups=count(args, "num_key_value_heads", "num_query_groups", "num_attention_heads"),
        vocabulary=Vocabulary(stored),
        positions=count(args, "max_position_embeddings"),
        parameters=None if names.layers else _recorded_parameters(state, tp or 1),
    )


def _steps(state: Mapping[str, Any]) -> int | None:
    value = state.get("global_steps")
    return value if isinstance(value, int) else None


def _recorded_parameters(state: Mapping[str, Any], tp: int) -> int | None:
    """Parameters by ``param_shapes``, which plain DeepSpeed records for the whole model."""
    groups = state.get("param_shapes")
    if tp > 1 or not isinstance(groups, list | tuple):
        return None
    shapes = [shape for group in groups if isinstance(group, dict) for shape in group.values()]
    # A foreign file may hold anything here.
    sizes = [[size for size in shape if isinstance(size, int)] for shape in shapes if isinstance(shape, list | tuple)]
    return sum(map(prod, sizes)) or None


def _as_model(
    folder: Path, names: DeepSpeedNames, opened: Mapping[str, StoredFile], report: Report
) -> StoredModel | None:
    """The layer files of a family that is not translated, by place, as far as names tell."""
    places: dict[ParameterId, tuple[LazyTensor, ...]] = {}
    block = -1
    tp = names.tp or 1
    for index in sorted({index for index, _ in names.layers}):
        shards = [opened[names.layers[index, rank]].tensors() for rank in range(tp)]
        section = section_of(shards[0]) or Section.LAYER
        block += section is Section.LAYER
        for key in shards[0]:
            if any(key not in shard for shard in shards):
                return None
            layer = block if section is Section.LAYER else -1
            places[ParameterId(section, layer, key)] = tuple(shard[key] for shard in shards)
    facts = report.model or ModelFacts()
    return StoredModel(
        path=folder,
        format="Megatron-DeepSpeed, pipeline engine",
        tp=tp,
        num_layers=block + 1,
        tensors=places,
        stages=None,
        pp=report.parallel.pp if report.parallel else None,
        args=report.args,
        iteration=facts.iteration,
        vocab_size=None,
        qkv=None,
    )
