"""Make a :class:`Plan` out of a stored model and what the user wants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamconv.assembly import REPLICATED_POLICIES, Assembly, assemble
from streamconv.capabilities import choose_target
from streamconv.coverage import prove
from streamconv.dtypes import DType
from streamconv.errors import AmbiguousError, UsageError
from streamconv.families.base import ModelFamily, Section, shard
from streamconv.files.pickle_writer import StoredTensor
from streamconv.files.torch_layout import TorchLayout, plan_torch_file
from streamconv.formats import find_source
from streamconv.formats.base import (
    Fact,
    ShardedModel,
    Slot,
    SourceOptions,
    TargetFile,
    TargetFiles,
    TargetFormat,
    TargetModel,
)
from streamconv.lazy import LazyTensor
from streamconv.parallel import ParallelLayout, even_stages
from streamconv.plans import Entry, OutputFile, Plan, Replica
from streamconv.recognise import need_heads, recognise
from streamconv.vocabulary import plan_vocabulary

__all__ = ["REPLICATED_POLICIES", "ConvertOptions", "make_plan"]


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
    dialect: str | None = None
    replicated: str = "first"
    vocab_size: int | None = None
    for_release: bool = False
    keep_args: bool = True
    source: SourceOptions = field(default_factory=SourceOptions)


def make_plan(path: Path, options: ConvertOptions) -> Plan:
    """Open ``path``, recognise the model, and plan its conversion. Only metadata is read; nothing is written.

    Raises:
        StreamconvError: whatever can be refused is refused here, with the class that says why.
    """
    model = find_source(path, options.source.tag).open(path, options.source)
    family, sizes = recognise(model, options.source.num_heads)
    target, why = choose_target(options.to, family)
    layout = _target_layout(model, options)
    need_heads(model, sizes, layout.tp)
    iteration = model.iteration
    if iteration is None:
        raise AmbiguousError("the iteration is unknown", where=model.path, remedy="say --iteration N")
    vocabulary = plan_vocabulary(
        sizes.vocab, model.vocab_size, options.vocab_size, model.args, model.tp, layout.tp, model.path
    )
    assembly = assemble(model, family, sizes, vocabulary, options.replicated)
    wanted = TargetModel(
        family=family,
        sizes=replace(sizes, vocab=vocabulary.padded),
        layout=layout,
        has_head=bool(model.keys(Section.HEAD)),
        args=model.args,
        iteration=iteration,
        dtype=options.dtype,
        dialect=_dialect(target, options),
        for_release=options.for_release,
        keep_args=options.keep_args,
    )
    laid_out = target.lay_out(wanted)
    files, roles = _fill(laid_out, assembly, wanted)
    coverage = prove(assembly.sources, assembly.left_out, roles)
    kept = (model.tp, model.stages) == (layout.tp, layout.stages)
    choices = (
        Fact(f"target {target.name}", why),
        Fact(f"layout {layout}", "as the source" if kept else "as asked"),
        Fact(f"vocabulary {vocabulary.padded} rows", vocabulary.reason),
    )
    return Plan(
        source=model.path,
        source_format=model.format,
        family=family.title,
        source_layout=_words(model),
        target_format=target.name,
        target_layout=layout,
        dtype=options.dtype,
        iteration=iteration,
        files=files,
        texts=laid_out.texts,
        replicas=(
            *assembly.replicas,
            *(Replica(name, (original, copy), "the word embedding") for name, copy, original in model.copies),
        ),
        replicated_policy=options.replicated,
        coverage=coverage,
        facts=tuple(model.facts),
        choices=choices,
        notes=laid_out.facts,
        warnings=(*model.warnings, *laid_out.warnings),
        dropped=(*assembly.dropped, *model.dropped),
    )


def _words(model: ShardedModel) -> str:
    if model.stages is not None:
        return str(ParallelLayout(model.tp, model.stages))
    return f"TP {model.tp} x PP {model.pp or 'unknown'} (stages unknown)"


def _dialect(target: TargetFormat, options: ConvertOptions) -> str:
    dialect = options.dialect or target.dialects[0]
    if dialect not in target.dialects:
        names = ", ".join(target.dialects)
        raise UsageError(f"--dialect {dialect}: {target.name} has no such dialect", remedy=f"choose one of {names}")
    return dialect


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


def _fill(
    laid_out: TargetFiles, assembly: Assembly, wanted: TargetModel
) -> tuple[tuple[OutputFile, ...], list[tuple[str, LazyTensor]]]:
    """The output files with what fills each storage, and every target tensor with its role in the coverage proof."""
    files: list[OutputFile] = []
    roles: list[tuple[str, LazyTensor]] = []
    uses: dict[tuple[int, Slot], int] = defaultdict(int)
    layouts: dict[tuple[int, str, tuple[StoredTensor, ...]], TorchLayout] = {}
    names: dict[int, dict[Slot, tuple[str, ...]]] = {}
    for file in laid_out.files:
        slots: dict[Slot, StoredTensor] = {}
        entries: list[Entry] = []
        if id(file.tree) not in names:
            names[id(file.tree)] = _names(file)
        for slot, found in names[id(file.tree)].items():
            tensor = _target_tensor(assembly, slot, wanted, file.rank)
            slots[slot] = StoredTensor(len(slots), tensor.dtype, tensor.shape)
            entries.append(Entry(found, slot.section, slot.layer, tensor))
            uses[file.rank, slot] += 1
            roles.append((_role(wanted.family, slot, file.rank, uses[file.rank, slot]), tensor))
        # Ranks that share a tree differ in the bytes of their tensors alone, so they share its layout.
        key = id(file.tree), file.archive, tuple(slots.values())
        if key not in layouts:
            layouts[key] = plan_torch_file(file.archive, _filled(file.tree, slots))
        files.append(OutputFile(file.path, file.rank, file.stage, layouts[key], tuple(entries)))
    return tuple(files), roles


def _role(family: ModelFamily, slot: Slot, rank: int, copy: int) -> str:
    """Shards of one parameter are proved together, each copy of it (a tied head, a replica) by itself."""
    parameter = family.parameter(slot.section, slot.key)
    return f"{parameter.name(slot.layer)}, copy {copy}" + ("" if parameter.axis is not None else f" on rank {rank}")


def _target_tensor(assembly: Assembly, slot: Slot, wanted: TargetModel, rank: int) -> LazyTensor:
    parameter = wanted.family.parameter(slot.section, slot.key)
    whole = assembly.whole[slot.section, slot.layer, slot.key]
    tp = wanted.layout.tp
    for tensor in whole:
        if parameter.axis is not None and tensor.shape[parameter.axis] % tp:
            raise UsageError(
                f"{parameter.name(slot.layer)}: {tensor.shape[parameter.axis]} does not divide over TP {tp}",
                remedy="choose another --tp",
            )
    tensor = shard(parameter, whole, tp, rank)
    return tensor if wanted.dtype is None else tensor.cast(wanted.dtype)


def _names(file: TargetFile) -> dict[Slot, tuple[str, ...]]:
    """The slots of a file in the order of its pickle, with their names in the model's state dict."""
    names: dict[Slot, tuple[str, ...]] = {}
    for path, slot in _slots(file.tree):
        names[slot] = (*names.get(slot, ()), path.removeprefix(f"{file.model}."))
    return names


def _slots(tree: Any, path: str = "") -> Iterator[tuple[str, Slot]]:
    """(dotted path, slot) of every leaf that is one, in the order of the pickle."""
    if isinstance(tree, Slot):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _slots(value, f"{path}.{key}" if path else str(key))


def _filled(tree: Any, slots: Mapping[Slot, StoredTensor]) -> Any:
    if isinstance(tree, Slot):
        return slots[tree]
    if isinstance(tree, dict):
        return type(tree)((key, _filled(value, slots)) for key, value in tree.items())
    return tree
