"""``config.json`` and training arguments, each made from the other by a family's settings.

What logits depend on is known, or asked for by its name; it is never what a default of transformers happens to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.core.errors import AmbiguousError, DamagedError, StreamconvError, UnsupportedError, UsageError
from streamconv.models.config.generation import generation_of
from streamconv.models.config.training_args import neutral_args
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import ModelSizes

__all__ = ["ConfigFiles", "Translation", "args_of", "config_of", "neutral_args", "overruled"]

# Where a model was, and code that does not come along: neither is true of the result.
_LEFT_BEHIND = ("_name_or_path", "_commit_hash", "auto_map")
_TIE, _VOCABULARY, _WINDOW = "tie_word_embeddings", "vocab_size", "sliding_window"


@dataclass(frozen=True, slots=True)
class Translation:
    """Training arguments, entries that no argument can say (name and value), what else should be known, and all entries
    that are known.
    """

    args: dict[str, Any]
    refusals: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]
    known: Mapping[str, Any]


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
        defaults: whether what transformers assumes for missing entries is said too.
        core: whether they are for Megatron-Core, not those that Megatron-DeepSpeed has.

    Raises:
        DamagedError: an entry makes no sense, or two that mean the same differ.
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
    return Translation(args, tuple(refusals), (note,) if assumed else (), known)


def _read(family: ModelFamily, config: Mapping[str, Any], kind: type[StreamconvError]) -> dict[str, Any]:
    """What a configuration says, in the names of the family's settings."""
    what = "--config" if kind is UsageError else "config.json"
    said: dict[str, Any] = {}
    try:
        for setting in family.huggingface.settings:
            said |= setting.read(config)
    except ValueError as error:
        raise kind(f"{what}: {error}") from error
    return said


def overruled(family: ModelFamily, config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A source's ``config.json`` with what the user says in its place, however either of them spells it.

    Raises:
        UsageError: what the user says makes no sense.
        DamagedError: an entry of ``config.json`` that is said in part makes no sense.
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
        sizes: its sizes; the vocabulary's are those that are written.
        args: the training arguments of the source, if it has any.
        config: the source's own ``config.json``, if it is a Hugging Face model; its entries stay.
        supplied: what the user says; it outweighs the source's ``config.json``.
        dtype_name: of the tensors.
        has_head: whether the head is a tensor of its own.

    Raises:
        AmbiguousError: logits depend on an entry, and nothing says it.
        UnsupportedError: the arguments say what transformers' model cannot do.
        UsageError: what the user says contradicts tensors or arguments.
        DamagedError: the source's own configuration contradicts its tensors, or makes no sense.
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
    """The source's own entries, checked against its tensors, and completed where transformers' versions differ."""
    known = _read(family, config, DamagedError)
    for setting in family.huggingface.settings:
        known |= {name: value for name, value in setting.defaults(config, known).items() if name not in known}
        for name, value in setting.shown(sizes).items():
            if known[name] != value:
                kind = UsageError if name in supplied else DamagedError
                raise kind(f"config.json says {name} {known[name]}, the tensors have {value}")
    completed = dict(config)
    for setting in family.huggingface.settings:
        if setting.spelled_twice:
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
    found = {**by_args, **by_tensors}
    notes = _contradictions(family, found, said, supplied, shown)
    known = {**said, **found}
    objections = [words for setting in settings for words in setting.objections(args, sizes, known)]
    if args.get(_WINDOW) is not None and all(_WINDOW not in setting.entries for setting in settings):
        objections.append(f"a {_WINDOW} of {args[_WINDOW]} positions, which Mistral has (--config with its model_type)")
    if objections:
        raise UnsupportedError(f"{family.title} in transformers cannot be this: {'; '.join(objections)}")
    _ask([name for setting in settings for name in setting.asks if name not in known])
    names = {
        "the tensors": list(by_tensors),
        "training arguments": [name for name in by_args if name not in by_tensors and name not in always],
        "--config": [name for name in supplied if name not in found],
    }
    notes += [(f"config.json: {', '.join(sorted(of))}", source) for source, of in names.items() if of]
    unknown = [name for setting in settings for name in setting.entries if name not in known]
    if unknown:
        notes.append((f"not known, left out or null: {', '.join(unknown)}", "logits do not depend on them"))
    written = dict(supplied)
    for setting in settings:
        written |= setting.write(known)
    return written, notes, [words for setting in settings for words in setting.warnings(args)]


def _contradictions(
    family: ModelFamily,
    found: Mapping[str, Any],
    said: Mapping[str, Any],
    supplied: Mapping[str, Any],
    shown: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """Refuse what the user says against the source; where logits do not depend on it, say which one counts."""
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
            if name in found and name in said and found[name] != said[name]:
                if setting.matters:
                    faults.append((name, said[name], found[name]))
                else:
                    notes.append((f"{name} {found[name]}, not {said[name]}", "the run's own outweighs --config"))
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
