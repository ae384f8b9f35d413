"""``config.json`` and training arguments, each made from the other by a family's settings.

A configuration that is made from arguments has every entry that logits depend on. Where nothing in the source says
one, the user is asked for it by name; a default of transformers is never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.core.errors import AmbiguousError, DamagedError, StreamconvError, UnsupportedError, UsageError
from streamconv.models.config.generation import generation_of
from streamconv.models.config.training_args import neutral_args
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import ModelSizes

__all__ = ["ConfigFiles", "Translation", "args_of", "config_of", "doubts_of", "neutral_args", "overruled"]

# The place of the source, and code that is not copied: neither holds for the result.
_LEFT_BEHIND = ("_name_or_path", "_commit_hash", "auto_map")
_CORRECT = "correct it, or say what counts with --config FILE"
_TIE, _VOCABULARY, _WINDOW = "tie_word_embeddings", "vocab_size", "sliding_window"


@dataclass(frozen=True, slots=True)
class Translation:
    """A translated ``config.json``: the training arguments; ``refusals``, entries (name and value) that no argument can
    express; notes (what, from what); all entries that are known; and warnings of those that are said twice.
    """

    args: dict[str, Any]
    refusals: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]
    known: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """``config.json`` and ``generation_config.json``; notes are (what, from what)."""

    config: dict[str, Any]
    generation_config: dict[str, Any]
    notes: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def args_of(
    family: ModelFamily, config: Mapping[str, Any], *, defaults: bool = True, core: bool = False
) -> Translation:
    """The training arguments that a ``config.json`` means.

    Args:
        family: the family that it names.
        config: its entries.
        defaults: whether missing entries get the values that transformers assumes.
        core: whether the arguments are for Megatron-Core instead of Megatron-DeepSpeed.

    Raises:
        DamagedError: an entry is invalid, or two that mean the same differ.
    """
    known = _read(family, config, DamagedError)
    said = set(known)
    args: dict[str, Any] = {}
    refusals: list[str] = []
    try:
        for setting in family.huggingface.settings if defaults else ():
            missing = setting.defaults(config, known)
            known |= {name: value for name, value in missing.items() if name not in known}
        for setting in family.huggingface.settings:
            args |= setting.to_args(known)
            refusals += setting.core_refusals(known) if core else setting.refusals(known)
    except ArithmeticError as error:
        raise DamagedError(f"config.json: {error}") from error
    assumed = [f"{name} {known[name]}" for name in known if name not in said and known[name] is not None]
    note = (f"entries that config.json leaves out: {', '.join(assumed)}", "transformers' defaults")
    doubts = tuple(doubts_of(family, config))
    return Translation(args, tuple(refusals), (note,) if assumed else (), known, doubts)


def doubts_of(family: ModelFamily, config: Mapping[str, Any], what: str = "config.json") -> Iterator[str]:
    """What a valid configuration says twice and differently: warnings of what is passed over."""
    return (f"{what}: {words}" for setting in family.huggingface.settings for words in setting.doubts(config))


def _read(family: ModelFamily, config: Mapping[str, Any], kind: type[StreamconvError]) -> dict[str, Any]:
    """The entries of a configuration, by the names of the family's settings."""
    what = "--config" if kind is UsageError else "config.json"
    said: dict[str, Any] = {}
    try:
        for setting in family.huggingface.settings:
            said |= setting.read(config)
    except ValueError as error:
        remedy = "correct it" if kind is UsageError else _CORRECT
        raise kind(f"{what}: {error}", remedy=remedy) from error
    return said


def overruled(family: ModelFamily, config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A source's ``config.json`` with the user's entries in place of its own, however either spells them.

    Raises:
        UsageError: one of the user's entries is invalid.
        DamagedError: an entry of ``config.json`` that the user replaces in part is invalid.
    """
    merged = {**config, **said}
    _read(family, said, UsageError)
    try:
        for setting in family.huggingface.settings:
            names = set(setting.spellings)
            if names & said.keys():
                merged = {name: value for name, value in merged.items() if name not in names}
                merged |= setting.overrule(config, said)
    except ValueError as error:
        raise DamagedError(f"config.json: {error}") from error
    return merged


def config_of(
    family: ModelFamily,
    sizes: ModelSizes,
    *,
    args: Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
    supplied: Mapping[str, Any],
    dtype_name: str,
    has_head: bool,
) -> ConfigFiles:
    """The configuration of a model that is written for transformers.

    Args:
        family: its family.
        sizes: its sizes; ``vocab`` counts the rows that are written.
        args: the training arguments of the source, if it has any.
        config: the source's own ``config.json``, if it is a Hugging Face model; its entries stay.
        supplied: the user's entries; they outweigh the source's ``config.json``.
        dtype_name: the dtype of the tensors.
        has_head: whether the head is a tensor of its own.

    Raises:
        AmbiguousError: logits depend on an entry that is unknown.
        UnsupportedError: the arguments require what transformers' model cannot do.
        UsageError: the user's entries contradict tensors or arguments.
        DamagedError: the source's own configuration contradicts its tensors, or is invalid.
    """
    shown = {_TIE: not has_head, _VOCABULARY: sizes.vocab}
    if config is None:
        written, notes, warnings = _from_args(family, sizes, neutral_args(args), supplied, shown)
    else:
        written, notes, warnings = _from_config(family, sizes, overruled(family, config, supplied), supplied), [], []
    left = sorted(name for name in _LEFT_BEHIND if written.pop(name, None))
    if left:
        notes.append((f"left out of config.json: {', '.join(left)}", "names of the source's place, or of code"))
    table = family.huggingface
    own = {"model_type": table.model_type, "architectures": [table.architecture]}
    written |= {**own, **shown, "dtype": dtype_name, "torch_dtype": dtype_name}
    generation = generation_of(config, written, supplied)
    return ConfigFiles(dict(sorted(written.items())), generation, tuple(notes), tuple(warnings))


def _from_config(
    family: ModelFamily, sizes: ModelSizes, config: dict[str, Any], supplied: Mapping[str, Any]
) -> dict[str, Any]:
    """The source's own entries, checked against its tensors, in every spelling that transformers' releases use."""
    known = _read(family, config, DamagedError)
    for setting in family.huggingface.settings:
        known |= {name: value for name, value in setting.defaults(config, known).items() if name not in known}
        for name, value in setting.shown(sizes).items():
            if known[name] != value:
                kind = UsageError if name in supplied else DamagedError
                raise kind(f"config.json says {name} {known[name]}, the tensors have {value}")
    completed = dict(config)
    for setting in family.huggingface.settings:
        if any(setting.doubts(config)):
            # What was passed over goes: other releases may take it.
            completed = {name: value for name, value in completed.items() if name not in setting.spellings}
            completed |= setting.write(known)
        elif setting.spelled_twice:
            completed |= {name: value for name, value in setting.write(known).items() if config.get(name) is None}
    return completed


def _from_args(
    family: ModelFamily,
    sizes: ModelSizes,
    args: Mapping[str, Any],
    supplied: Mapping[str, Any],
    shown: Mapping[str, Any],
) -> tuple[dict[str, Any], list[tuple[str, str]], list[str]]:
    """Entries from tensors, arguments and the user, in this order; notes; warnings."""
    settings = family.huggingface.settings
    said = _read(family, supplied, UsageError)
    by_tensors = {name: value for setting in settings for name, value in setting.shown(sizes).items()}
    always = {name: value for setting in settings for name, value in setting.to_config({}).items()}
    try:
        by_args = {name: value for setting in settings for name, value in setting.to_config(args).items()}
    except ValueError as error:
        raise DamagedError(str(error)) from error
    by_source = {**by_args, **by_tensors}
    notes = _contradictions(family, by_source, said, supplied, shown)
    known = {**said, **by_source}
    objections = [words for setting in settings for words in setting.objections(args, sizes, known)]
    if args.get(_WINDOW) is not None and all(_WINDOW not in setting.entries for setting in settings):
        objections.append(f"a {_WINDOW} of {args[_WINDOW]} positions, which Mistral has (--config with its model_type)")
    if objections:
        raise UnsupportedError(f"{family.title} in transformers cannot be this: {'; '.join(objections)}")
    _ask([name for setting in settings for name in setting.asks if name not in known])
    names = {
        "the tensors": list(by_tensors),
        "training arguments": [name for name in by_args if name not in by_tensors and name not in always],
        "--config": [name for name in supplied if name not in by_source],
    }
    notes += [(f"config.json: {', '.join(sorted(of))}", source) for source, of in names.items() if of]
    unknown = [name for setting in settings for name in setting.entries if name not in known]
    if unknown:
        notes.append((f"not known, left out or null: {', '.join(unknown)}", "logits do not depend on them"))
    written = dict(supplied)
    for setting in settings:
        written |= setting.write(known)
    warnings = [words for setting in settings for words in setting.warnings(args)]
    return written, notes, [*warnings, *doubts_of(family, supplied, "--config")]


def _contradictions(
    family: ModelFamily,
    by_source: Mapping[str, Any],
    said: Mapping[str, Any],
    supplied: Mapping[str, Any],
    shown: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """Notes on the user's entries that the source overrules, which is allowed where logits do not depend on them.

    Raises:
        UsageError: another of the user's entries contradicts the source.
    """
    fixed = {**shown, "model_type": family.huggingface.model_type}
    faults = [
        (name, supplied[name], value)
        for name, value in fixed.items()
        if supplied.get(name) not in (None, value) and not (name == _VOCABULARY and _is_padded(supplied[name], value))
    ]
    notes = []
    if (vocabulary := supplied.get(_VOCABULARY)) not in (None, shown[_VOCABULARY]):
        notes.append((f"vocab_size {shown[_VOCABULARY]}, not {vocabulary}", "the rows that are written, with padding"))
    for setting in family.huggingface.settings:
        for name in setting.entries:
            if name in by_source and name in said and by_source[name] != said[name]:
                if setting.matters:
                    faults.append((name, said[name], by_source[name]))
                else:
                    notes.append((f"{name} {by_source[name]}, not {said[name]}", "the run's own outweighs --config"))
    if faults:
        words = "; ".join(f"{name} is {said!r} in --config and {value!r} in the source" for name, said, value in faults)
        raise UsageError(words, remedy="leave it out of --config, or give the configuration of this model")
    return notes


def _is_padded(said: Any, stored: int) -> bool:
    return isinstance(said, int) and said < stored


def _ask(missing: list[str]) -> None:
    if missing:
        example = ", ".join(f'"{name}": ..' for name in missing)
        raise AmbiguousError(
            f"nothing in the source says {', '.join(missing)}, and the model's answers depend on it",
            remedy=f"--config FILE with {{{example}}}, or the config.json that the run began with",
        )
