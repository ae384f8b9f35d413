"""Options, each declared once: a field of a dataclass that a format, or the run, owns.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class LegacyOptions(TrainingOptions):
        dialect: str = option(Choice(("2021", "2023-09")), "whose names the norms have", default="2021")

The command line, the variables of the environment, the keywords in Python, the checks for options without effect and
the tables in the documentation are made from the declarations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, TypeVar

from streamconv.core.errors import StreamconvError, UsageError
from streamconv.core.kinds import AnyOf, Flag, InvalidValue, ValueKind, nearest
from streamconv.core.shown import as_shown, as_written, with_flags

__all__ = ["ENVIRONMENT", "Given", "Option", "all_options", "option", "options_of"]

ENVIRONMENT = "STREAMCONV_"
_DECLARED = "option"
O = TypeVar("O")  # noqa: E741 - the class of options


def option(
    kind: ValueKind,
    help: str,  # noqa: A002 - as argparse and click call it
    *,
    default: Any = None,
    flag: str | None = None,
    short: str | None = None,
    purpose: str = "",
    neutral: Any = None,
    main: bool = False,
    destroys: bool = False,
    repeats: bool = False,
) -> Any:
    """Declare an option, as the default of a dataclass's field.

    Args:
        kind: the kind of value.
        help: what it does, for the help and the documentation; without a full stop.
        default: the value if it is not given. None may also stand for what the source has.
        flag: the long name on the command line, if it is not the field's; that of a :class:`Flag` whose default is True
            says the opposite.
        short: a name of one letter.
        purpose: what it is for, in few words, for the refusal where it has no effect; by default ``help``.
        neutral: a value that asks for nothing, and so is never without effect.
        main: whether the help shows it among the options that matter first.
        destroys: whether it destroys or overrules something, and so is not read from the environment.
        repeats: whether a :class:`Flag` counts how often it is given.
    """
    return field(
        default=default,
        metadata={
            _DECLARED: {
                "kind": kind,
                "help": help,
                "flag": flag,
                "short": short,
                "purpose": purpose or help,
                "neutral": neutral,
                "main": main,
                "destroys": destroys,
                "repeats": repeats,
            }
        },
    )


@dataclass(frozen=True, slots=True)
class Option:
    """A declared option; ``name`` is its keyword in Python, the other fields are described at :func:`option`."""

    name: str
    kind: ValueKind
    help: str
    default: Any
    flag: str
    short: str | None
    purpose: str
    neutral: Any
    main: bool
    destroys: bool
    repeats: bool

    @property
    def variable(self) -> str | None:
        """The variable of the environment that it is read from, if any."""
        return None if self.destroys else self.any_variable

    @property
    def any_variable(self) -> str:
        """The name that its variable has, or would have."""
        return ENVIRONMENT + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def is_switch(self) -> bool:
        """Whether it is given without a value."""
        return isinstance(self.kind, Flag)

    @property
    def keyword_help(self) -> str:
        """What the keyword does; a switch that is on by default has the flag's meaning when it is False."""
        return f"False: {self.help}" if self.is_switch and self.default else self.help

    def asks_nothing(self, value: Any) -> bool:
        """Whether a value is one that asks for nothing."""
        return value == self.neutral or (self.is_switch and value == self.default)

    def prefixed(self, prefix: str) -> Option:
        """The same option for one of several checkpoints: ``--a-tag`` of ``--tag``."""
        flag = f"--{prefix}-{self.flag.removeprefix('--')}"
        return replace(self, name=f"{prefix}_{self.name}", flag=flag, short=None, main=False)


_CACHED: dict[type, tuple[Option, ...]] = {}


def options_of(owner: type) -> tuple[Option, ...]:
    """The options that a dataclass declares, those of its bases first."""
    if owner not in _CACHED:
        _CACHED[owner] = tuple(_described(each) for each in fields(owner) if _DECLARED in each.metadata)
    return _CACHED[owner]


def _described(each: Field[Any]) -> Option:
    declared = dict(each.metadata[_DECLARED])
    declared["flag"] = declared["flag"] or f"--{each.name.replace('_', '-')}"
    return Option(name=each.name, default=None if each.default is MISSING else each.default, **declared)


def all_options(owners: Iterable[type]) -> dict[str, Option]:
    """The options of several dataclasses by their names.

    Where dataclasses declare options of one name with different values, the option has the values of all of them, and
    :meth:`Given.take` checks them for each.
    """
    found: dict[str, list[Option]] = {}
    for owner in owners:
        for each in options_of(owner):
            found.setdefault(each.name, []).append(each)
    return {name: _merged(declared) for name, declared in found.items()}


def _merged(declared: list[Option]) -> Option:
    kinds: list[ValueKind] = []
    for each in declared:
        if not any(each.kind.is_like(other) for other in kinds):
            kinds.append(each.kind)
    if len(kinds) == 1:
        return declared[0]
    helps = "; or ".join(dict.fromkeys(each.help for each in declared))
    return replace(declared[0], kind=AnyOf(kinds), help=helps, default=None)


@dataclass(frozen=True, slots=True)
class Given:
    """The options that a user gave, by their names in Python, with checked values.

    ``spelled`` has the words that gave an option its value, for messages. ``ambient`` are the names of those that are
    no mistake where they have no effect: the environment gave them, for every command, or they are for something else
    too. ``own_flags`` are the flags by which one of several checkpoints has its options: ``--a-tag`` for ``--tag``.
    """

    values: Mapping[str, Any]
    ambient: frozenset[str] = frozenset()
    spelled: Mapping[str, str] = field(default_factory=dict)
    own_flags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def keywords(cls, known: Mapping[str, Option], keywords: Mapping[str, Any]) -> Given:
        """The options that a caller in Python gave; None stands for one that is not given.

        Raises:
            UsageError: there is no such option, or it cannot have this value.
        """
        values: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for name, value in keywords.items():
            if name not in known:
                raise UsageError(f"{name}: no such option", remedy=_meant(name, known))
            if value is not None:
                spelled[name] = f"{name}={as_written(value)}"
                values[name] = _checked(known[name], value, spelled[name])
        return cls(values, spelled=spelled)

    def check(self, known: Mapping[str, Option]) -> None:
        """Check all values at once; raises :class:`UsageError` if an option cannot have its own."""
        for name, value in self.values.items():
            _checked(known[name], value, self.spelled.get(name, f"{known[name].flag} {as_shown(value)}"))

    def word_for(self, each: Option) -> str:
        """The flag or the keyword by which an option was given: ``--a-tag`` for ``--tag``, if it is of one side."""
        return self.spelled.get(each.name, each.flag).split(" ")[0].split("=")[0]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option, or ``default``."""
        return self.values.get(name, default)

    def only(self, owners: Iterable[type]) -> Given:
        """What these dataclasses declare of it."""
        known = all_options(owners)
        return replace(self, values={name: value for name, value in self.values.items() if name in known})

    def without(self, name: str) -> Given:
        """The same, without an option."""
        return replace(self, values={other: value for other, value in self.values.items() if other != name})

    def forgiving(self, names: Iterable[str]) -> Given:
        """The same; it is no mistake where these options have no effect, because they are for something else too."""
        return replace(self, ambient=self.ambient.union(names))

    def called(self, prefix: str, known: Iterable[Option]) -> Given:
        """The same, for the checkpoint called ``prefix``, which has these options apart too."""
        return replace(self, own_flags={each.flag: each.prefixed(prefix).flag for each in known})

    @contextmanager
    def naming_its_own(self) -> Iterator[None]:
        """The remedies of errors inside name the flags of the checkpoint that is meant."""
        try:
            yield
        except StreamconvError as error:
            error.remedy = None if error.remedy is None else with_flags(error.remedy, self.own_flags)
            raise

    def plus(self, **values: Any) -> Given:
        """The same, with these values, which nobody said."""
        return replace(self, values={**self.values, **values}, ambient=self.ambient.union(values))

    def side(self, prefix: str, names: Iterable[str], shared: Iterable[str] | None = None) -> Given:
        """Of options for several checkpoints, those of the one called ``prefix``; its own outweigh those for all.

        Args:
            prefix: ``a`` of ``a_config``.
            names: the options that can be given apart.
            shared: those of them that it has in common with the others; None is all.
        """
        own = {name: self.values[f"{prefix}_{name}"] for name in names if f"{prefix}_{name}" in self.values}
        spelled = {name: words for name in own if (words := self.spelled.get(f"{prefix}_{name}"))}
        common = {name: self.values[name] for name in (names if shared is None else shared) if name in self.values}
        ambient = frozenset(name for name in own if f"{prefix}_{name}" in self.ambient)
        return Given({**common, **own}, ambient | (self.ambient - own.keys()), {**self.spelled, **spelled})

    def take(self, owner: type[O]) -> O:
        """The options of one dataclass, with the defaults of those that are not given.

        Several dataclasses may declare options of one name. What the environment gave for another one, or what does not
        go with what was said, is passed over.

        Raises:
            UsageError: another dataclass's option of the same name can have this value, and this one's cannot.
        """
        mine = {}
        for each in options_of(owner):
            if each.name in self.values:
                value = self.values[each.name]
                with suppress(UsageError) if each.name in self.ambient else nullcontext():
                    spelled = self.spelled.get(each.name, f"{each.flag} {as_shown(value)}")
                    mine[each.name] = _checked(each, value, spelled)
        try:
            return owner(**mine)
        except UsageError:
            for name in [name for name in mine if name in self.ambient]:
                with suppress(UsageError):
                    return owner(**{other: value for other, value in mine.items() if other != name})
            raise

    def without_effect(self, taken_by: Iterable[type], known: Mapping[str, Option]) -> Iterator[Option]:
        """The options among ``known`` that none of the dataclasses declares, and that ask for something."""
        taken = all_options(taken_by)
        for name, value in self.values.items():
            each = known.get(name)
            if each is not None and name not in taken and name not in self.ambient and not each.asks_nothing(value):
                yield each


def _meant(name: str, known: Mapping[str, Option]) -> str:
    """What to say for an unknown keyword: the one that was probably meant, or what a flag is in Python."""
    switches = {each.flag: f"say {each.name}={not each.default}" for each in known.values() if each.is_switch}
    meant = nearest(name, known)
    otherwise = f"did you mean {meant}=?" if meant else f"choose among {', '.join(known)}"
    return switches.get(f"--{name.replace('_', '-')}", otherwise)


def _checked(each: Option, value: Any, spelled: str) -> Any:
    try:
        return each.kind.check(value)
    except InvalidValue as error:
        raise UsageError(f"{spelled}: {error.what}", remedy=error.remedy) from None
