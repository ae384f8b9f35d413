"""Make a :class:`Plan` from a stored model and the user's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamconv.core.coverage import prove
from streamconv.core.errors import AmbiguousError, UnsupportedError, UsageError
from streamconv.core.layout import ParallelLayout
from streamconv.core.options import Given
from streamconv.core.replica import Replica
from streamconv.formats.huggingface.tokenizer import PROCESSOR_NAMES, TOKENIZER_NAMES, files_along, tokenizer_files
from streamconv.formats.options import TargetOptions, TrainingOptions, WholeOptions
from streamconv.formats.source import Dropped, Fact, StoredModel
from streamconv.formats.target import TargetFiles, TargetFormat, TargetModel
from streamconv.io.reading import status_of
from streamconv.models.config.settings import Implied, Size
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import ModelSizes, Section
from streamconv.models.translate import args_of, neutral_args, overruled
from streamconv.planning.biases import settle_biases
from streamconv.planning.capabilities import find_target, reason_for
from streamconv.planning.gather import assemble
from streamconv.planning.names_kept import make_plan_of_names, masters_at_hand
from streamconv.planning.opening import open_supplied
from streamconv.planning.options import ConversionOptions
from streamconv.planning.plan import Plan
from streamconv.planning.recognise import need_heads, recognise
from streamconv.planning.scatter import Filler
from streamconv.planning.target_layout import target_layout
from streamconv.planning.unused_options import refuse_unused_options
from streamconv.planning.vocabulary import VocabularyPlan, plan_vocabulary, unpad_vocabulary

__all__ = ["make_plan"]

# Entries of a config.json that do not affect the model's function, or that its tensors show.
_NO_ARGUMENTS = ("vocab_size", "architectures", "dtype", "torch_dtype", "transformers_version")


def make_plan(path: Path, given: Given) -> Plan:
    """Open ``path``, recognise the model, and plan its conversion. Nothing is written. Only metadata is read, and the
    values of biases that transformers' model may lack (:mod:`streamconv.planning.biases`).

    Args:
        path: the source.
        given: the user's options: those of conversions, sources and targets.

    Raises:
        StreamconvError: the conversion is refused; its class says why.
    """
    wanted, said = given.take(ConversionOptions), given.get("config", {})
    if (named := find_target(wanted.to)).keeps_names:
        return make_plan_of_names(path, given, wanted, named)
    model, family, sizes, target = _open(path, given, wanted)
    options = given.take(target.options)
    layout = _layout(model, options)
    try:
        need_heads(model, sizes, layout.tp, moved=not target.is_sharded, cuts_groups=target.is_core)
    except UnsupportedError:
        # Where the target cannot hold the family at any TP, another --tp is no remedy.
        reason_for(target, wanted.to, family)
        raise
    if model.iteration is None and not model.is_release and target.is_sharded:
        raise AmbiguousError("the iteration is unknown", where=model.path, remedy="say --iteration N")
    vocabulary = _vocabulary(model, family, sizes, layout, options, given.get("vocab_size"))
    biases = settle_biases(model, family, target, said)
    assembly = assemble(model, family, sizes, vocabulary, wanted.replicated, biases.left)
    biases.fill(assembly, model, sizes)
    filler = Filler(assembly, biases.family, layout.tp, wanted.dtype)
    laid_out = target.lay_out(
        TargetModel(
            family=biases.family,
            sizes=replace(sizes, vocab=vocabulary.padded, biases=biases.entries),
            layout=layout,
            has_head=bool(model.keys(Section.HEAD)),
            args=model.args,
            iteration=model.iteration,
            dtype=wanted.dtype,
            vocab_size=given.get("vocab_size") or model.vocab_size,
            config=model.config,
            supplied=said,
            fork=model.fork,
            spec=model.spec,
            tensor_of=filler.tensor,
            options=options,
        )
    )
    need_heads(model, sizes, layout.tp, moved=laid_out.orders.qkv != model.orders.qkv, cuts_groups=target.is_core)
    files, roles = filler.fill(laid_out)
    return Plan(
        root=path,
        source=model.path,
        source_format=model.format,
        family=family.title,
        source_layout=_layout_words(model),
        target_format=target.name,
        target_layout=layout,
        dtype=wanted.dtype,
        iteration=model.iteration,
        files=files,
        texts=laid_out.texts,
        replicas=(*assembly.replicas, *_copies(model, family)),
        replicated_policy=wanted.replicated,
        coverage=prove(assembly.sources, assembly.left_out, roles),
        facts=model.facts,
        choices=_choices(model, target, reason_for(target, wanted.to, family), layout, vocabulary),
        notes=(*laid_out.facts, *biases.facts(model, target)),
        warnings=(
            *model.warnings,
            *laid_out.warnings,
            *masters_at_hand(model.masters, wanted.dtype),
            *_without_tokenizer(model, options),
        ),
        dropped=(*assembly.dropped, *biases.dropped(model), *model.dropped, *_left_tokenizer(model, options)),
        small=laid_out.small,
        copied=_copied(model, options, laid_out),
        owned=laid_out.owned,
        beside=() if target.is_sharded else (*TOKENIZER_NAMES, *PROCESSOR_NAMES),
    )


def _open(
    path: Path, given: Given, wanted: ConversionOptions
) -> tuple[StoredModel, ModelFamily, ModelSizes, TargetFormat]:
    """The recognised model, with arguments if the target has them, and the target."""
    said = given.get("config", {})
    source, supplied, named = open_supplied(path, given, has_args=find_target(wanted.to).is_sharded)
    model, family, sizes = recognise(supplied, given.get("num_heads"), named)
    if family.only_named and (refusal := source.refusal(family)):
        # Another family has the same parameters, so the user's configuration is the only evidence for this one.
        raise UnsupportedError(
            f"no {source.name} checkpoint is a {family.title}: {refusal}",
            where=model.path,
            remedy="give the configuration of the model that was trained",
        )
    target = find_target(wanted.to, family)
    refuse_unused_options(given, source, target, wanted.to)
    if target.is_sharded and model.config is not None:
        model = _translate(model, overruled(family, model.config, said), family, said, core=target.is_core)
    _refuse_core_only(model, target)
    return model, family, sizes, target


def _layout(model: StoredModel, options: TargetOptions) -> ParallelLayout:
    if not isinstance(options, TrainingOptions):
        return ParallelLayout(1, (model.num_layers,))
    return target_layout(model, options)


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
    layout: ParallelLayout,
    options: TargetOptions,
    said: int | None,
) -> VocabularyPlan:
    recorded = model.vocab_size
    if isinstance(options, WholeOptions):
        keeps = family.huggingface.keeps_padding
        return unpad_vocabulary(sizes.vocab, recorded, said, options.vocab_padding, keeps_padding=keeps)
    args = model.args or {}
    is_padded = model.config is None
    return plan_vocabulary(sizes.vocab, recorded, said, args, model.tp, layout.tp, model.path, is_padded=is_padded)


def _copies(model: StoredModel, family: ModelFamily) -> list[Replica]:
    what, strict = "the word embedding", model.copies_must_equal
    remedy = f"a {family.title} model has no other head than its embedding: remove the copy, if the embedding is right"
    if any(parameter.section is Section.HEAD for parameter in family.parameters):
        remedy = 'say {"tie_word_embeddings": false} in --config to keep both'
    return [Replica(name, (original, copy), what, strict, remedy) for name, copy, original in model.copies]


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


def _copied(model: StoredModel, options: TargetOptions, laid_out: TargetFiles) -> dict[str, Path]:
    """The tokenizer's files, which go along with a model without ranks: from where the user says, or the source."""
    if not isinstance(options, WholeOptions):
        return {}
    if options.tokenizer is not None:
        return tokenizer_files(options.tokenizer, laid_out.names)
    return {} if model.home is None else files_along(model.home, laid_out.names)


def _without_tokenizer(model: StoredModel, options: TargetOptions) -> list[str]:
    """A warning where a result for transformers has no tokenizer, because a training checkpoint has none."""
    if not isinstance(options, WholeOptions) or options.tokenizer is not None or model.home is not None:
        return []
    return ["no tokenizer goes along: a training checkpoint has none; --tokenizer DIR copies one"]


def _left_tokenizer(model: StoredModel, options: TargetOptions) -> list[Dropped]:
    """The tokenizer's files of a source whose target has none of its own."""
    found = {} if model.home is None or isinstance(options, WholeOptions) else files_along(model.home)
    if not found:
        return []
    nbytes = sum(status_of(path).st_size for path in found.values())
    return [
        Dropped(f"the tokenizer ({', '.join(list(found)[:3])})", nbytes, "a training run is given its own by a flag")
    ]


def _layout_words(model: StoredModel) -> str:
    if model.layout is not None:
        return str(model.layout)
    known = (
        "unknown" if model.stages is None else f"of {','.join(map(str, model.stages))} layers, VPP {model.vpp}, uneven"
    )
    return f"TP {model.tp} x PP {model.pp or 'unknown'} (stages {known})"
