"""Describe a sharded checkpoint that opened whole: folders of Megatron-DeepSpeed, GPT-NeoX and Megatron-LM."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamconv.core.errors import StreamconvError, UnsupportedError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.formats.common.shards import likely_axis
from streamconv.formats.deepspeed.names import FolderNames
from streamconv.formats.source import StoredModel
from streamconv.inspection.inspected import Places
from streamconv.inspection.names import count
from streamconv.inspection.report import (
    Cell,
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
from streamconv.inspection.stored import first_byte
from streamconv.inspection.target_map import FIRST, LAST
from streamconv.inspection.values import readable
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import WORDS, ModelSizes, ParameterId, Section
from streamconv.planning.recognise import nearest_family, recognise

__all__ = ["KnownModel", "canonical_tensors", "describe_sharded", "recognised"]

_SECTIONS = {Section.EMBEDDING: 0, Section.LAYER: 1, Section.FINAL_NORM: 2, Section.HEAD: 3}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An opened model, with its family and sizes if the family is translated, else with the refusal."""

    model: StoredModel
    family: ModelFamily | None = None
    sizes: ModelSizes | None = None
    refusal: StreamconvError | None = None

    def axis(self, parameter: ParameterId) -> int | None:
        """The tensor-parallel axis, None if every rank has a copy."""
        return likely_axis(parameter) if self.family is None else self.family.parameter(parameter).axis


def recognised(model: StoredModel, num_heads: int | None, named: str | None = None) -> KnownModel:
    """The model with its family, or with the reason why no family fits."""
    try:
        return KnownModel(*recognise(model, num_heads, named, by_args=True))
    except StreamconvError as error:
        return KnownModel(_with_family_fact(model), refusal=error)


def _with_family_fact(model: StoredModel) -> StoredModel:
    """The model with the family that its keys are nearest to, though something else is wrong with it."""
    try:
        evidence = nearest_family(model).evidence
    except UnsupportedError:
        return model
    return model.noting(facts=[evidence])


def canonical_tensors(found: KnownModel) -> tuple[dict[str, LazyTensor], dict[str, tuple[LazyTensor, ...]]]:
    """Each parameter over all ranks (the first copy of a replicated one), and the copies of replicated ones."""
    whole: dict[str, LazyTensor] = {}
    copies: dict[str, tuple[LazyTensor, ...]] = {}
    for place, shards in _in_order(found.model.tensors):
        name, axis = place.name, found.axis(place)
        # A tensor that lacks the axis is not what its name says: it is shown as it is stored.
        if axis is None or axis >= len(shards[0].shape):
            whole[name] = shards[0]
            if len(shards) > 1:
                copies[name] = shards
        else:
            whole[name] = concat(shards, axis)
    return whole, copies


def _in_order(
    tensors: Mapping[ParameterId, tuple[LazyTensor, ...]],
) -> list[tuple[ParameterId, tuple[LazyTensor, ...]]]:
    return sorted(tensors.items(), key=lambda pair: (_SECTIONS[pair[0].section], pair[0].layer))


def _files_by_place(model: StoredModel) -> Places:
    """The files of each layer and rank; ``first`` is the part before the layers, ``last`` the part after them."""
    names = _Names(model.path)
    files_of: dict[tuple[int | str, int], dict[str, None]] = defaultdict(dict)
    for parameter, shards in model.tensors.items():
        is_first = parameter.section is Section.EMBEDDING
        where = parameter.layer if parameter.section is Section.LAYER else FIRST if is_first else LAST
        for rank, shard in enumerate(shards):
            files_of[where, rank].update(dict.fromkeys(names.of(shard)))
    return {place: tuple(files) for place, files in files_of.items()}


class _Names:
    """Paths below a folder as text, cached: a big checkpoint has few files and many tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[int, str] = {}

    def of(self, tensor: LazyTensor) -> Iterator[str]:
        """The files that a tensor is stored in."""
        for piece in tensor.pieces:
            for view in piece.views:
                path = view.storage.path
                if id(path) not in self.known:
                    self.known[id(path)] = str(path.relative_to(self.folder))
                yield self.known[id(path)]


def describe_sharded(found: KnownModel, report: InspectionReport, names: FolderNames | None) -> Places:
    """Fill a report from an opened model; returns the files of each layer and rank."""
    places = _files_by_place(found.model)
    model = found.model
    report.what = model.format
    report.evidence += [Evidence(fact.what, fact.evidence) for fact in model.facts]
    report.findings += [Finding("warning", words) for words in model.warnings]
    if found.refusal is not None:
        report.findings.append(finding_of(found.refusal))
    report.tensors = _rows(found)
    report.files = _files(model, report.tensors)
    report.args = None if model.args is None else {n: readable(v) for n, v in sorted(model.args.items())}
    guessed = report.model.family if report.model else None
    report.model = _facts(found, found.family.title if found.family else guessed)
    report.parallel = _parallel(model, names, places)
    return places


def _rows(found: KnownModel) -> list[TensorRow]:
    rows = []
    names = _Names(found.model.path)
    for stored, shards in _in_order(found.model.tensors):
        name, is_layer = stored.name, stored.section is Section.LAYER
        parameter = stored.key if is_layer else name
        number = stored.layer if is_layer else None
        for shard in shards:
            file = next(names.of(shard), "")
            rows.append(
                TensorRow(name, file, str(shard.dtype), shard.shape, shard.nbytes, first_byte(shard), number, parameter)
            )
    return rows


def _files(model: StoredModel, rows: Sequence[TensorRow]) -> list[FileRow]:
    tensors: dict[str, int] = defaultdict(int)
    for row in rows:
        tensors[row.file] += 1
    files = []
    for path in sorted(path for path in model.path.rglob("*") if path.is_file()):
        name = str(path.relative_to(model.path))
        kind = "parameters" if name in tensors else "optimizer" if "optim" in name else "state"
        files.append(FileRow(name, path.stat().st_size, kind, tensors.get(name, 0)))
    return files


def _facts(found: KnownModel, family: str | None) -> ModelFacts:
    model, sizes, args = found.model, found.sizes, found.model.args or {}
    counts: dict[int | None, int] = defaultdict(int)
    for place, shards in model.tensors.items():
        elements = shards[0].numel if found.axis(place) is None else sum(shard.numel for shard in shards)
        counts[place.layer if place.section is Section.LAYER else None] += elements
    words = [shard for shard in model.tensors.get(WORDS, ()) if len(shard.shape) == 2]
    stored = words[0].shape[0] * model.tp if words else None
    true = model.vocab_size
    heads = sizes.heads if sizes else count(args, "num_attention_heads")
    per_layer = {counts[layer] for layer in range(model.num_layers)}
    return ModelFacts(
        family=family,
        iteration=model.iteration,
        num_layers=model.num_layers,
        hidden=sizes.hidden if sizes else words[0].shape[1] if words else None,
        ffn=sizes.ffn if sizes else count(args, "ffn_hidden_size"),
        heads=heads,
        kv_groups=count(args, "num_key_value_heads", "num_query_groups") or heads,
        vocabulary=Vocabulary(stored, true, stored - true if stored is not None and true is not None else None),
        positions=sizes.positions if sizes else count(args, "max_position_embeddings"),
        parameters=sum(counts.values()),
        parameters_per_layer=per_layer.pop() if len(per_layer) == 1 else None,
    )


def _parallel(model: StoredModel, names: FolderNames | None, places: Places) -> ParallelFacts:
    stages = model.owned
    if stages is None and model.stages is not None:
        ends = [sum(model.stages[: stage + 1]) for stage in range(len(model.stages))]
        stages = tuple(tuple(range(end - n, end)) for end, n in zip(ends, model.stages, strict=True))
    cells = []
    for stage, layers in enumerate(stages or (tuple(range(model.num_layers)),)):
        for rank in range(model.tp):
            wanted: list[int | str] = [*layers]
            if stage == 0:
                wanted.insert(0, FIRST)
            if stages is None or stage == len(stages) - 1:
                wanted.append(LAST)
            files = [name for place in wanted for name in places.get((place, rank), ())]
            if names is not None and stages is not None:
                files += _rank_files(names, stage * model.tp + rank)
            cells.append(Cell(stage, rank, tuple(dict.fromkeys(files))))
    return ParallelFacts(model.tp, model.pp, None if names is None else names.dp, stages, tuple(cells))


def _rank_files(names: FolderNames, model_rank: int) -> list[str]:
    own = [names.ranks[model_rank]] if model_rank in names.ranks else []
    own += [name for (_, rank), name in sorted(names.optimizer.items()) if rank == model_rank]
    return own
