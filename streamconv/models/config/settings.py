"""Settings: entries of a ``config.json``, and the training arguments that mean the same.

One setting serves both directions. A family lists its settings in its own module; their classes are here and in the
modules beside this one, their base in :mod:`streamconv.models.config.setting`. Defaults are those of transformers 5.23,
``models/*/configuration_*.py``, which a test compares with transformers itself. Arguments have the names of
Megatron-DeepSpeed, ``megatron/arguments.py`` of deepspeedai's fork (4efb479). Names of bigscience's fork (8387ae1) and
of Megatron-LM are mapped to them by :func:`streamconv.models.config.training_args.neutral_args`.
"""

# ruff: noqa: D102 - Setting documents the methods.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamconv.core.text import shown
from streamconv.models.config.checks import Check, Rule, count, default_of, flag, number
from streamconv.models.config.setting import Args, Config, Setting
from streamconv.models.parameter import ModelSizes

__all__ = [
    "NEVER",
    "TOKENS",
    "Args",
    "Config",
    "Constant",
    "Entry",
    "Fixed",
    "Gives",
    "Implied",
    "Never",
    "Setting",
    "Size",
    "Tied",
    "Token",
]


@dataclass(frozen=True, kw_only=True)
class Entry(Setting):
    """An entry that corresponds to one argument. ``also`` are transformers' other names for it (``attribute_map``).

    ``default`` is a value, or a rule over the entries before it; ``null`` is what null means if not the default.
    """

    entry: str
    arg: str | None
    default: Any
    check: Check = number
    also: tuple[str, ...] = ()
    null: Any = None
    matters: bool = True

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.entry,)

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.entry, *self.also)

    @property
    def asks(self) -> tuple[str, ...]:
        return self.entries if self.matters else ()

    def read(self, config: Config) -> dict[str, Any]:
        said = [(name, config[name]) for name in self.spellings if config.get(name) is not None]
        for name, value in said:
            if self.check(name, value) != said[0][1]:
                raise ValueError(f"{said[0][0]} is {said[0][1]}, {name} is {value}: they mean the same")
        return {self.entry: said[0][1]} if said else {}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        is_null = self.entry in config and self.null is not None
        return {self.entry: default_of(self.null if is_null else self.default, known)}

    def to_args(self, known: Config) -> dict[str, Any]:
        return {self.arg: known[self.entry]} if self.arg is not None and self.entry in known else {}

    def to_config(self, args: Args) -> dict[str, Any]:
        value = None if self.arg is None else args.get(self.arg)
        return {} if value is None else {self.entry: self.check(f"args.{self.arg}", value)}


@dataclass(frozen=True, kw_only=True)
class Size(Entry):
    """An entry that tensors show: an attribute of :class:`ModelSizes`."""

    size: str
    check: Check = count

    def shown(self, sizes: ModelSizes) -> dict[str, Any]:
        return {} if (value := getattr(sizes, self.size)) is None else {self.entry: value}


@dataclass(frozen=True)
class Implied(Setting):
    """A size that transformers has no entry for: its model computes it from the entries ``of``, as ``words`` say."""

    size: str
    arg: str
    value: Rule
    of: tuple[str, ...]
    words: str

    def to_args(self, known: Config) -> dict[str, Any]:
        return {self.arg: self.value(known)} if all(name in known for name in self.of) else {}

    def objections(self, args: Args, sizes: ModelSizes, known: Config) -> Iterator[str]:
        stored = getattr(sizes, self.size)
        if stored is not None and all(name in known for name in self.of) and stored != self.value(known):
            yield f"{self.arg} {stored}: transformers' model has always {self.words}"


@dataclass(frozen=True)
class Constant(Setting):
    """An entry for which the family's tensors, or Megatron's model, allow only one value, or ``alike`` ones."""

    entry: str
    value: Any
    alike: tuple[Any, ...] = ()

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.entry,)

    def read(self, config: Config) -> dict[str, Any]:
        said = config.get(self.entry)
        return {} if said is None else {self.entry: self.value if said in self.alike else said}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        return {self.entry: self.value}

    def refusals(self, known: Config) -> Iterator[str]:
        if known.get(self.entry, self.value) != self.value:
            yield f"{self.entry} {known[self.entry]!r}"

    def to_config(self, args: Args) -> dict[str, Any]:
        return {self.entry: self.value}


@dataclass(frozen=True)
class Token(Setting):
    """The id of a special token. If it is unknown, null is written: transformers would assume another id."""

    entry: str

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.entry,)

    def read(self, config: Config) -> dict[str, Any]:
        return {self.entry: config[self.entry]} if self.entry in config else {}

    def write(self, known: Config) -> dict[str, Any]:
        return {self.entry: known.get(self.entry)}


@dataclass(frozen=True)
class Tied(Setting):
    """Whether the head is tied to the word embedding, which tensors show; ``default`` is transformers' assumption."""

    default: bool

    @property
    def spellings(self) -> tuple[str, ...]:
        return ("tie_word_embeddings",)

    def read(self, config: Config) -> dict[str, Any]:
        said = config.get("tie_word_embeddings")
        return {} if said is None else {"tie_word_embeddings": flag("tie_word_embeddings", said)}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        return {"tie_word_embeddings": self.default}

    def to_args(self, known: Config) -> dict[str, Any]:
        name = "tie_word_embeddings"
        return {"untie_embeddings_and_output_weights": not known[name]} if name in known else {}


@dataclass(frozen=True)
class Gives(Setting):
    """An argument that has one value in all results of the family. A source that has another value is accepted."""

    arg: str
    value: Any

    def to_args(self, known: Config) -> dict[str, Any]:
        return {self.arg: self.value}


@dataclass(frozen=True)
class Fixed(Gives):
    """An argument that has one value in all results of the family. A source that has another value is refused."""

    def objections(self, args: Args, sizes: ModelSizes, known: Config) -> Iterator[str]:
        if args.get(self.arg) not in (None, self.value):
            yield f"args.{self.arg} {args[self.arg]!r}: transformers' model has always {self.value!r}"


@dataclass(frozen=True)
class Never(Setting):
    """An argument that transformers' models have no equivalent of; ``why`` says what it does."""

    arg: str
    why: str

    def objections(self, args: Args, sizes: ModelSizes, known: Config) -> Iterator[str]:
        if (said := args.get(self.arg)) is not None and said is not False:
            yield f"args.{self.arg} {shown(said)}: {self.why}"


NEVER = (
    # megatron/model/fused_layer_norm.py of deepspeedai's fork; Megatron-LM's is layernorm_zero_centered_gamma.
    Never("apply_layernorm_1p", "norms are stored less 1, and transformers does not add it"),
    # megatron/training/arguments.py of Megatron-LM.
    Never("window_size", "a window over positions that is not translated"),
    Never("use_mup", "other scales of embedding and attention"),
)
"""Arguments without an equivalent in transformers; Gemma alone has the first."""

TOKENS = (Token("bos_token_id"), Token("eos_token_id"), Token("pad_token_id"))
"""The special tokens whose ids transformers has defaults for."""
