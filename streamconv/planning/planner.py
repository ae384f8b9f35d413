"""Make a :class:`Plan` from a stored model and the user's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamconv.core.coverage import prove
from streamconv.core.errors import AmbiguousError, UnsupportedError, UsageError
from streamconv.core.layout import ParallelLayout
from streamconv.core.replica import Replica
from streamconv.formats.huggingface.tokenizer import TOKENIZER_NAMES, tokenizer_files
from streamconv.formats.registry import open_source
from streamconv.formats.source import Fact, StoredModel, positive_int
from streamconv.formats.target import TargetFiles, TargetFormat, TargetModel
from streamconv.models.config.settings import Implied, Size
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import ModelSizes, Section
from streamconv.models.registry import family_of
from streamconv.models.translate import args_of, neutral_args, overruled
from streamconv.planning.biases import Biases, settle_biases
from streamconv.planning.capabilities import find_target, reason_for
from streamconv.planning.gather import REPLICATED_POLICIES, assemble
from streamconv.planning.plan import Plan
from streamconv.planning.recognise import need_heads, recognise
from streamconv.planning.request import ConvertOptions
from streamconv.planning.scatter import Filler
from streamconv.planning.target_layout import target_layout
from streamconv.planning.unused_options import refuse_unused_options
from streamconv.planning.vocabulary import VocabularyPlan, plan_vocabulary, unpad_vocabulary

__all__ = ["REPLICATED_POLICIES", "make_plan"]

_SHARD_NBYTES = 5 * 10**9
# Entries of a config.json that do not affect the model's function, or that its tensors show.
_NO_ARGUMENTS = ("vocab_size", "architectures", "dtype", "torch_dtype", "transformers_version")


def make_plan(path: Path, options: ConvertOptions) -> Plan:
    """Open ``path``, recognise the model, and plan its conversion. Nothing is written. Only metadata is read, and the
    values of biases that transformers' model may lack (:mod:`streamconv.planning.biases`).

    Raises:
        StreamconvError: the conversion is refused; its class says why.
    """
    model, family, sizes, target = _open(path, options)
    layout = _layout(model, target, options)
    try:
        need_heads(model, sizes, layout.tp, moved=not target.is_sharded, cuts_groups=target.is_core)
    except UnsupportedError:
        # Where the target cannot hold the family at any TP, another --tp is no remedy.
        reason_for(target, options.to, family)
        raise
    if model.iteration is None and not model.is_release and target.is_sharded:
        raise AmbiguousError("the iteration is unknown", where=model.path, remedy="say --iteration N")
    vocabulary = _vocabulary(model, family, sizes, target, layout, options)
    biases = settle_biases(model, family, target, options.source.config)
    assembly = assemble(model, family, sizes, vocabulary, options.replicated, biases.left)
    biases.fill(assembly, model, sizes)
    filler = Filler(assembly, biases.family, layout.tp, options.dtype)
    laid_out = target.lay_out(_wanted(model, biases, sizes, vocabulary, target, layout, filler, options))
    need_heads(model, sizes, layout.tp, moved=laid_out.orders.qkv != model.orders.qkv, cuts_groups=target.is_core)
    files, roles = filler.fill(laid_out)
    return Plan(
        source=model.path,
        source_format=model.format,
        family=family.title,
        source_layout=_layout_words(model),
        target_format=target.name,
        target_layout=layout,
        dtype=options.dtype,
        iteration=model.iteration,
        files=files,
        texts=laid_out.texts,
        replicas=(*assembly.replicas, *_copies(model)),
        replicated_policy=options.replicated,
        coverage=prove(assembly.sources, assembly.left_out, roles),
        facts=model.facts,
        choices=_choices(model, target, reason_for(target, options.to, family), layout, vocabulary),
        notes=(*laid_out.facts, *biases.facts(model, target)),
        warnings=(*model.warnings, *laid_out.warnings, *_spec_caution(model, target, options)),
        dropped=(*assembly.dropped, *biases.dropped(model), *model.dropped),
        small=laid_out.small,
        copied=_copied(options, laid_out),
        owned=laid_out.owned,
        beside=() if target.is_sharded else TOKENIZER_NAMES,
    )


def _open(path: Path, options: ConvertOptions) -> tuple[StoredModel, ModelFamily, ModelSizes, TargetFormat]:
    """The recognised model, with arguments if the target has them, and the target."""
    said = options.source.config
    source, stored = open_source(path, options.source)
    supplied, named = _supply(stored, said, has_args=find_target(options.to).is_sharded)
    model, family, sizes = recognise(supplied, options.source.num_heads, named)
    if family.only_named and (refusal := source.refusal(family)):
        # Another family has the same parameters, so the user's configuration is the only evidence for this one.
        raise UnsupportedError(
            f"no {source.name} checkpoint is a {family.title}: {refusal}",
            where=model.path,
            remedy="give the configuration of the model that was trained",
        )
    target = find_target(options.to, family)
    refuse_unused_options(model, target, options)
    if target.is_sharded and model.config is not None:
        model = _translate(model, overruled(family, model.config, said), family, said, core=target.is_core)
    _refuse_core_only(model, target)
    return model, family, sizes, target


def _layout(model: StoredModel, target: TargetFormat, options: ConvertOptions) -> ParallelLayout:
    if not target.is_sharded:
        return ParallelLayout(1, (model.num_layers,))
    return target_layout(model, target, options.layout, options.core.container)


def _wanted(
    model: StoredModel,
    biases: Biases,
    sizes: ModelSizes,
    vocabulary: VocabularyPlan,
    target: TargetFormat,
    layout: ParallelLayout,
    filler: Filler,
    options: ConvertOptions,
) -> TargetModel:
    return TargetModel(
        family=biases.family,
        sizes=replace(sizes, vocab=vocabulary.padded, biases=biases.entries),
        layout=layout,
        has_head=bool(model.keys(Section.HEAD)),
        args=model.args,
        iteration=model.iteration,
        dtype=options.dtype,
        dialect=_dialect(target, options),
        for_release=options.for_release,
        keep_args=options.keep_args,
        vocab_size=options.vocab_size or model.vocab_size,
        config=model.config,
        supplied=options.source.config,
        fork=model.fork,
        max_shard_nbytes=options.max_shard_nbytes or _SHARD_NBYTES,
        core=options.core,
        tensor_of=filler.tensor,
    )


def _supply(model: StoredModel, said: Mapping[str, Any], *, has_args: bool) -> tuple[StoredModel, str | None]:
    """The model with the user's configuration added, and the name of the family that the configuration names.

    If ``said`` is a ``config.json``, it only adds what the source lacks. If it is training arguments, which it is for a
    target with arguments and a source without ``config.json``, they replace the source's.
    """
    known = dict(model.args or {})
    if "model_type" not in said:
        if said and has_args and model.config is None:
            fact = Fact(f"training arguments {', '.join(sorted(said))}", "--config")
            return replace(model, args={**known, **said}).noting(facts=[fact]), None
        return model, None
    family = family_of(said)
    told = args_of(family, said, defaults=False).args
    told = {name: value for name, value in told.items() if known.get(name) is None}
    if told:
        fact = Fact(f"{len(told)} arguments from config.json", f"--config: {', '.join(sorted(told))}")
        model = replace(model, args={**known, **told}).noting(facts=[fact])
    vocabulary = positive_int(said, "vocab_size", model.path)
    if model.vocab_size is None and vocabulary is not None:
        fact = Fact(f"{vocabulary} true rows of the vocabulary", "--config: vocab_size")
        model = replace(model, vocab_size=vocabulary).noting(facts=[fact])
    return model, family.name


def _translate(
    model: StoredModel, config: Mapping[str, Any], family: ModelFamily, said: Mapping[str, Any], *, core: bool
) -> StoredModel:
    """The model with its ``config.json`` translated to training arguments, and the user's own arguments added.

    ``config`` is the source's, overruled by ``said``. Entries of ``said`` that no ``config.json`` has are arguments; if
    ``said`` is a ``config.json`` itself, it has none.

    Raises:
        UnsupportedError: no argument can express an entry; ``--config`` may change the entry.
        UsageError: a size among the user's arguments differs from the model's.
    """
    translation = args_of(family, config, core=core)
    if translation.refusals:
        who = "Megatron-LM has" if core else "Megatron-DeepSpeed and Megatron-LM's legacy model have"
        raise UnsupportedError(
            f"{who} no {'; no '.join(translation.refusals)}",
            where=model.path,
            remedy="convert --to huggingface; or, to go without, say the entries otherwise with --config FILE",
        )
    entries = {*_NO_ARGUMENTS, *(name for setting in family.huggingface.settings for name in setting.spellings)}
    own = {name: value for name, value in said.items() if name not in entries and "model_type" not in said}
    sizes = {setting.arg for setting in family.huggingface.settings if isinstance(setting, Size | Implied)}
    for name in own.keys() & sizes:
        if own[name] != translation.args[name]:
            words = f"{name} is {own[name]!r} in --config, and {translation.args[name]!r} as config.json says"
            raise UsageError(words, remedy="leave it out of --config")
    facts = [Fact(what, evidence) for what, evidence in translation.notes]
    facts += [Fact(f"training arguments {', '.join(sorted(own))}", "--config")] if own else []
    return replace(model, args={**translation.args, **own}).noting(facts=facts)


def _refuse_core_only(model: StoredModel, target: TargetFormat) -> None:
    """Refuse arguments of a source without ``config.json`` that only Megatron-Core can run."""
    if model.config is not None or target.is_core or not target.is_sharded:
        return
    args = neutral_args(model.args)
    for name in ("sliding_window", "use_rope_scaling", "rotary_seq_len_interpolation_factor", "rope_scaling"):
        if args.get(name):
            raise UnsupportedError(
                f"args.{name} {args[name]}: {target.name} has no argument for it",
                where=model.path,
                remedy="convert --to megatron-core, or --to huggingface",
            )


def _vocabulary(
    model: StoredModel,
    family: ModelFamily,
    sizes: ModelSizes,
    target: TargetFormat,
    layout: ParallelLayout,
    options: ConvertOptions,
) -> VocabularyPlan:
    recorded, said = model.vocab_size, options.vocab_size
    if not target.is_sharded:
        keeps = family.huggingface.keeps_padding
        return unpad_vocabulary(sizes.vocab, recorded, said, options.vocab_padding, keeps_padding=keeps)
    args = model.args or {}
    is_padded = model.config is None
    return plan_vocabulary(sizes.vocab, recorded, said, args, model.tp, layout.tp, model.path, is_padded=is_padded)


def _spec_caution(model: StoredModel, target: TargetFormat, options: ConvertOptions) -> list[str]:
    """A warning if norms get the other spec's names by default: a run of the source's spec would ignore them."""
    renamed = target.is_core and options.core.container == "torch" and options.core.spec is None
    if not renamed or model.spec != "local":
        return []
    names = "norms get the names of Transformer Engine, and have those of the local spec in the source"
    return [f"{names}: --spec local keeps them"]


def _copies(model: StoredModel) -> list[Replica]:
    what, strict = "the word embedding", model.copies_must_equal
    return [Replica(name, (original, copy), what, strict) for name, copy, original in model.copies]


def _choices(
    model: StoredModel, target: TargetFormat, why: str, layout: ParallelLayout, vocabulary: VocabularyPlan
) -> tuple[Fact, ...]:
    kept = model.layout == layout
    shape = (Fact(f"layout {layout}", "as the source" if kept else "as asked"),) if target.is_sharded else ()
    return (
        Fact(f"target {target.name}", why),
        *shape,
        Fact(f"vocabulary {vocabulary.padded} rows", vocabulary.reason),
    )


def _copied(options: ConvertOptions, laid_out: TargetFiles) -> dict[str, Path]:
    if options.tokenizer is None:
        return {}
    taken = {*laid_out.texts, *laid_out.small, *(file.path for file in laid_out.files)}
    return tokenizer_files(options.tokenizer, taken)


def _layout_words(model: StoredModel) -> str:
    if model.layout is not None:
        return str(model.layout)
    known = (
        "unknown" if model.stages is None else f"of {','.join(map(str, model.stages))} layers, VPP {model.vpp}, uneven"
    )
    return f"TP {model.tp} x PP {model.pp or 'unknown'} (stages {known})"


def _dialect(target: TargetFormat, options: ConvertOptions) -> str:
    dialect = options.dialect or target.dialects[0]
    if dialect not in target.dialects:
        names = ", ".join(target.dialects)
        flag = "--fork" if target.name in ("deepspeed", "gpt-neox") else "--dialect"
        raise UsageError(f"{flag} {dialect}: {target.name} has no such choice", remedy=f"choose one of {names}")
    return dialect
