"""Make a :class:`Plan` out of a stored model and what the user wants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamconv.capabilities import choose_target
from streamconv.coverage import Box, prove
from streamconv.dtypes import DType
from streamconv.errors import AmbiguousError, UsageError
from streamconv.families.base import ModelFamily, ModelSizes, QkvLayout, Section, gather, shard
from streamconv.files.pickle_writer import StoredTensor
from streamconv.files.torch_layout import plan_torch_file
from streamconv.formats import deepspeed, megatron_legacy
from streamconv.formats.base import Dropped, Fact, Place, ShardedModel, SourceOptions
from streamconv.formats.megatron_legacy import DIALECTS, Slot
from streamconv.lazy import LazyTensor, mean
from streamconv.parallel import ParallelLayout, even_stages
from streamconv.plans import OutputFile, Plan, Replica
from streamconv.recognise import need_heads, recognise
from streamconv.vocabulary import Vocabulary, plan_vocabulary, repad

__all__ = ["REPLICATED_POLICIES", "ConvertOptions", "make_plan"]

REPLICATED_POLICIES = ("first", "mean", "fail")


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What a conversion is asked to do. None means: as the source has it.

    ``to`` is a target format or ``megatron`` (the newest Megatron layout that can hold the model). ``pp_layers`` are
    the layers of each stage. ``replicated`` says which copy of a replicated parameter counts.
    """

    to: str = "megatron"
    tp: int | None = None
    pp: int | None = None
    pp_layers: tuple[int, ...] | None = None
    dtype: DType | None = None
    dialect: str = "2021"
    replicated: str = "first"
    vocab_size: int | None = None
    for_release: bool = False
    keep_args: bool = True
    source: SourceOptions = field(default_factory=SourceOptions)


@dataclass(slots=True)
class _Assembly:
    """The canonical parameters of a model, and what was decided while they were made."""

    whole: dict[Place, tuple[LazyTensor, ...]]
    replicas: list[Replica]
    sources: dict[str, LazyTensor]
    left_out: dict[str, list[Box] | None]
    dropped: list[Dropped]


def make_plan(path: Path, options: ConvertOptions) -> Plan:
    """Open ``path``, recognise the model, and plan its conversion. Only metadata is read; nothing is written.

    Raises:
        StreamconvError: whatever can be refused is refused here, with the class that says why.
    """
    model = deepspeed.open_model(path, options.source)
    family, sizes = recognise(model, options.source.num_heads)
    target_format, why = choose_target(options.to, family)
    layout = _target_layout(model, options)
    need_heads(model, sizes, layout.tp)
    iteration = model.iteration
    if iteration is None:
        raise AmbiguousError("the iteration is unknown", where=model.path, remedy="say --iteration N")
    vocabulary = plan_vocabulary(sizes.vocab, model.vocab_size, options.vocab_size, model.args, model.tp, layout.tp)
    assembly = _assemble(model, family, sizes, vocabulary, options)
    entries, arg_drops = _entries(model, sizes, vocabulary, layout, options)
    files, roles = _lay_out(model, family, assembly, layout, options, entries)
    coverage = prove(assembly.sources, assembly.left_out, roles)
    dialect = DIALECTS[options.dialect]
    choices = [
        Fact(f"target {target_format}, names of {dialect.name}", why),
        Fact(f"layout {layout}", "as the source" if _same_layout(model, layout) else "as asked"),
        Fact(f"vocabulary {vocabulary.padded} rows", vocabulary.reason),
        Fact("loads in", dialect.loads_in if family.name != "bloom" else family.runs_in),
        Fact("parameters only", "optimizer, scheduler and random number state stay behind"),
    ]
    if arg_drops:
        choices.append(Fact(f"left out of args: {', '.join(arg_drops)}", "not plain data"))
    return Plan(
        source=model.path,
        source_format=model.format,
        family=family.title,
        source_layout=_words(model),
        target_format=target_format,
        target_layout=layout,
        dtype=options.dtype,
        iteration=iteration,
        files=files,
        texts={megatron_legacy.TRACKER: str(iteration)},
        replicas=tuple(assembly.replicas),
        replicated_policy=options.replicated,
        coverage=coverage,
        facts=tuple(model.facts),
        choices=tuple(choices),
        warnings=(*model.warnings, *_cautions(model, family, layout, options)),
        dropped=(*assembly.dropped, *model.dropped),
    )


def _words(model: ShardedModel) -> str:
    if model.stages is not None:
        return str(ParallelLayout(model.tp, model.stages))
    return f"TP {model.tp} x PP {model.pp or 'unknown'} (stages unknown)"


def _same_layout(model: ShardedModel, layout: ParallelLayout) -> bool:
    return (model.tp, model.stages) == (layout.tp, layout.stages)


def _target_layout(model: ShardedModel, options: ConvertOptions) -> ParallelLayout:
    tp = options.tp if options.tp is not None else model.tp
    if options.pp_layers is not None:
        if options.pp not in (None, len(options.pp_layers)):
            raise UsageError(
                f"--pp {options.pp} and {len(options.pp_layers)} stages in --pp-layers", remedy="say one of them"
            )
        if sum(options.pp_layers) != model.num_layers or min(options.pp_layers) < 1:
            raise UsageError(
                f"--pp-layers {','.join(map(str, options.pp_layers))} adds up to {sum(options.pp_layers)} layers",
                remedy=f"the model has {model.num_layers}, and each stage needs at least one",
            )
        return ParallelLayout(tp, options.pp_layers)
    if options.pp is not None and options.pp != model.pp:
        if not 1 <= options.pp <= model.num_layers:
            raise UsageError(
                f"--pp {options.pp}: the model has {model.num_layers} layers", remedy="choose fewer stages"
            )
        return ParallelLayout(tp, even_stages(model.num_layers, options.pp))
    if model.stages is None:
        raise AmbiguousError(
            f"the source's PP is {model.pp or 'unknown'}, and nothing says which stage owned which layer",
            where=model.path,
            remedy=f"say --pp-layers N,N,.. adding up to {model.num_layers}, or another --pp",
        )
    return ParallelLayout(tp, model.stages)


def _assemble(
    model: ShardedModel, family: ModelFamily, sizes: ModelSizes, vocabulary: Vocabulary, options: ConvertOptions
) -> _Assembly:
    qkv = model.qkv or QkvLayout.INTERLEAVED
    result = _Assembly({}, [], {}, {}, [])
    copies = 0
    for place, shards in model.tensors.items():
        section, layer, key = place
        parameter = family.parameter(section, key)
        name = parameter.name(layer)
        result.sources |= {f"{name} of rank {rank}": tensor for rank, tensor in enumerate(shards)}
        if parameter.axis is None:
            chosen, spare = _one_of(shards, options.replicated)
            if len(shards) > 1:
                result.replicas.append(Replica(name, shards))
            result.left_out |= {f"{name} of rank {rank}": None for rank in spare}
            copies += sum(shards[rank].nbytes for rank in spare)
            shards = (chosen,)
        result.whole[place] = gather(parameter, shards, sizes, qkv)
        if parameter.is_vocabulary and not vocabulary.is_verbatim:
            _drop_padding(result, place, name, vocabulary)
    if copies:
        ranks = f"ranks 1 to {model.tp - 1}" if model.tp > 2 else "rank 1"
        reason = "replicated: compared with rank 0, whose copy is written"
        result.dropped.append(Dropped(f"copies of {len(result.replicas)} parameters on {ranks}", copies, reason))
    return result


def _one_of(shards: Sequence[LazyTensor], policy: str) -> tuple[LazyTensor, range]:
    """The tensor that stands for all copies, and the ranks whose copies are not read for it."""
    if policy == "mean" and len(shards) > 1:
        return mean(shards), range(0)
    return shards[0], range(1, len(shards))


def _drop_padding(result: _Assembly, place: Place, name: str, vocabulary: Vocabulary) -> None:
    (whole,) = result.whole[place]
    true, stored = vocabulary.true or 0, vocabulary.stored
    row = whole.nbytes // stored
    if stored > true:
        reason = f"padding: the target pads {true} true rows to {vocabulary.padded} with copies of the last"
        result.dropped.append(Dropped(f"rows {true} to {stored - 1} of {name}", (stored - true) * row, reason))
    per_rank = stored // len([n for n in result.sources if n.startswith(f"{name} of rank ")])
    for rank, start in enumerate(range(0, stored, per_rank)):
        first = max(true - start, 0)
        if first < per_rank:
            padding: Box = ((first, per_rank), (0, whole.shape[1]))
            result.left_out[f"{name} of rank {rank}"] = [padding] if first else None
    result.whole[place] = (repad(whole, vocabulary),)


def _entries(
    model: ShardedModel, sizes: ModelSizes, vocabulary: Vocabulary, layout: ParallelLayout, options: ConvertOptions
) -> tuple[dict[str, Any], list[str]]:
    entries: dict[str, Any] = {"iteration": model.iteration}
    if not options.keep_args:
        return entries, []
    padded = replace(sizes, vocab=vocabulary.padded)
    entries["args"], dropped = megatron_legacy.target_args(
        model.args, padded, layout, options.dtype, for_release=options.for_release
    )
    return entries, dropped


def _lay_out(
    model: ShardedModel,
    family: ModelFamily,
    assembly: _Assembly,
    layout: ParallelLayout,
    options: ConvertOptions,
    entries: Mapping[str, Any],
) -> tuple[tuple[OutputFile, ...], list[tuple[str, LazyTensor]]]:
    files: list[OutputFile] = []
    roles: list[tuple[str, LazyTensor]] = []
    has_head = bool(model.keys(Section.HEAD))
    uses: dict[tuple[int, Slot], int] = defaultdict(int)
    for rank in range(layout.tp):
        for stage in range(layout.pp):
            tree = megatron_legacy.file_tree(family, has_head, layout, stage, DIALECTS[options.dialect], entries)
            slots: dict[Slot, StoredTensor] = {}
            tensors: list[LazyTensor] = []
            for slot in _slots(tree):
                if slot not in slots:
                    tensor = _target_tensor(family, assembly, slot, layout.tp, rank, options.dtype)
                    slots[slot] = StoredTensor(len(slots), tensor.dtype, tensor.shape)
                    tensors.append(tensor)
                    roles += _roles(family, slot, rank, tensor, uses)
            path = megatron_legacy.rank_path(model.iteration or 0, layout, rank, stage)
            laid = plan_torch_file(megatron_legacy.ARCHIVE, _filled(tree, slots))
            files.append(OutputFile(path, laid, tuple(tensors)))
    return tuple(files), roles


def _roles(
    family: ModelFamily, slot: Slot, rank: int, tensor: LazyTensor, uses: dict[tuple[int, Slot], int]
) -> Iterator[tuple[str, LazyTensor]]:
    """The role under which the coverage proof counts a tensor: shards of one parameter together, each copy alone."""
    parameter = family.parameter(slot.section, slot.key)
    uses[rank, slot] += 1
    copy = f"{uses[rank, slot]}" if parameter.axis is not None else f"{uses[rank, slot]} on rank {rank}"
    yield f"{parameter.name(slot.layer)}, copy {copy}", tensor


def _target_tensor(
    family: ModelFamily, assembly: _Assembly, slot: Slot, tp: int, rank: int, dtype: DType | None
) -> LazyTensor:
    parameter = family.parameter(slot.section, slot.key)
    whole = assembly.whole[slot.section, slot.layer, slot.key]
    for tensor in whole:
        if parameter.axis is not None and tensor.shape[parameter.axis] % tp:
            raise UsageError(
                f"{parameter.name(slot.layer)}: {tensor.shape[parameter.axis]} does not divide over TP {tp}",
                remedy="choose another --tp",
            )
    tensor = shard(parameter, whole, tp, rank)
    return tensor if dtype is None else tensor.cast(dtype)


def _slots(tree: Any) -> Iterator[Slot]:
    if isinstance(tree, Slot):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _slots(value)


def _filled(tree: Any, slots: Mapping[Slot, StoredTensor]) -> Any:
    if isinstance(tree, Slot):
        return slots[tree]
    if isinstance(tree, dict):
        return type(tree)((key, _filled(value, slots)) for key, value in tree.items())
    return tree


def _cautions(
    model: ShardedModel, family: ModelFamily, layout: ParallelLayout, options: ConvertOptions
) -> Iterator[str]:
    if len(set(layout.stages)) > 1:
        yield "stages of unequal length: Megatron-LM divides layers evenly over stages and loads no others"
    enum = (model.args or {}).get("position_embedding_type")
    if options.keep_args and enum is not None:
        yield (
            "args.position_embedding_type is an enum of bigscience's code and is left out; its own loader compares it "
            "and stops: write for that loader with --no-args"
        )
    if family.name == "bloom" and options.dialect != "2021":
        yield "only bigscience's fork runs BLOOM, and it reads the names of 2021 alone"
