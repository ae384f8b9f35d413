"""A command made of declared options: its parameters, its help, its completion, and what was given to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from streamconv.api.options import SIDES, options_of_verb, source_names
from streamconv.cli.environment import variables_that_are_not_read
from streamconv.cli.exit_codes import exit_codes_text
from streamconv.cli.options import OutputOptions
from streamconv.core.errors import UsageError
from streamconv.core.kinds import InvalidValue, PathTo, nearest
from streamconv.core.options import Given, Option, all_options, options_of
from streamconv.core.shown import as_shown
from streamconv.formats.frameworks import target_options
from streamconv.formats.options import TrainingOptions

__all__ = ["Command", "Invocation", "Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """A path, or another word, that a verb takes without a flag."""

    name: str
    help: str
    required: bool = True
    is_path: bool = True


@dataclass(frozen=True, slots=True)
class Invocation:
    """What was given on the command line and in the environment: paths by their names, and options."""

    places: Mapping[str, str | None]
    given: Given

    @property
    def output(self) -> OutputOptions:
        """What is to be printed."""
        return self.given.take(OutputOptions)


class OptionType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """An option's kind of values, as click asks for it."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.kind.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The checked value of a text."""
        return _read(self.option, value, f"{self.option.flag} {as_shown(value)}") if isinstance(value, str) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The words that an option can have, or the shell's own completion of paths."""
        kind = self.option.kind
        if kind.folder is not None:
            return [CompletionItem(incomplete, type="dir" if kind.folder else "file")]
        return [CompletionItem(word) for word in kind.words if word.startswith(incomplete.lower())]


class PathType(click.Path):
    """A path without a flag, or that no option declares."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.named = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The checked path, as text."""
        try:
            return str(PathTo("PATH", folder=True).check(value))
        except InvalidValue as error:
            raise UsageError(f"{self.named} {as_shown(value)}: {error.what}") from None


def _read(option: Option, text: str, spelled: str) -> Any:
    try:
        return option.kind.read(text)
    except InvalidValue as error:
        raise UsageError(f"{spelled}: {error.what}", remedy=error.remedy) from None


class Command(click.Command):
    """A command with a verb's paths and options; ``own`` are dataclasses of options that only the command line has."""

    def __init__(
        self,
        verb: str,
        help: str,  # noqa: A002 - click's name for it
        places: Sequence[Place],
        run: Callable[[Invocation], int],
        own: Sequence[type] = (),
        path_options: Sequence[Place] = (),
    ) -> None:
        self.known = {**options_of_verb(verb), **all_options([*own, OutputOptions])}
        self.places, self.path_options, self.own = places, path_options, own
        self._run, self.verb = run, verb
        params: list[click.Parameter] = [
            click.Argument(
                [place.name], required=place.required, type=PathType(place.name.upper()) if place.is_path else str
            )
            for place in places
        ]
        params += [
            click.Option([f"--{place.name}"], metavar="PATH", help=place.help, type=PathType(f"--{place.name}"))
            for place in path_options
        ]
        params += [_parameter(each) for each in self.known.values()]
        super().__init__(verb, params=params, help=help, context_settings={"help_option_names": ["-h", "--help"]})

    def invoke(self, ctx: click.Context) -> int:
        """Run the verb; returns the exit code."""
        places = {place.name: ctx.params[place.name] for place in (*self.places, *self.path_options)}
        call = Invocation(places, self._given(ctx))
        if not call.output.quiet:
            for warning in variables_that_are_not_read():
                print(f"warning: {warning}", file=sys.stderr)
        return self._run(call)

    def _given(self, ctx: click.Context) -> Given:
        values: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        ambient = set()
        for name, each in self.known.items():
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                values[name] = (not each.default) if each.is_switch else _value(each, ctx.params[name])
                spelled[name] = each.flag if each.is_switch else f"{each.flag} {as_shown(values[name])}"
            elif each.variable is not None and (text := os.environ.get(each.variable)):
                spelled[name] = f"{each.variable}={as_shown(text)}"
                value = _read(each, text, spelled[name])
                if value is not False:
                    values[name] = (not each.default) if each.is_switch else value
                    ambient.add(name)
        return Given(values, frozenset(ambient), spelled)

    # -- help ------------------------------------------------------------------------------------------------------

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's; the words are kept, for the help of a target."""
        ctx.meta["streamconv.words"] = list(args)
        return super().parse_args(ctx, list(self._with_values(args)))

    def _with_values(self, args: Sequence[str]) -> Iterator[str]:
        """The words, with the value that a flag alone stands for: the next word may be a path."""
        bare = {each.flag: each for each in self.known.values() if each.kind.bare is not None}
        for word, following in zip_longest(args, args[1:], fillvalue=""):
            bare = {} if word == "--" else bare  # what follows are paths
            each = bare.get(word)
            yield word if each is None or following.lower() in each.kind.words else f"{word}={each.kind.bare}"

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """``streamconv convert [OPTIONS] SRC DST``."""
        names = [place.name.upper() if place.required else f"[{place.name.upper()}]" for place in self.places]
        formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *names]))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The paths, the options that matter first, those of the target that is named, and the others."""
        for title, rows in self._sections(_named_target(ctx.meta.get("streamconv.words", []))):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=28)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The environment, and the exit codes."""
        formatter.write_paragraph()
        if any(each.name == "tp" for each in self.known.values()):
            formatter.write_text("The options of a target: add --to TARGET to --help. ")
            formatter.write_paragraph()
        formatter.write_text(
            "Options are also read from the environment, such as --max-ram from STREAMCONV_MAX_RAM; but not "
            "--overwrite, --restart and --ignore."
        )
        formatter.write_paragraph()
        formatter.write_text(exit_codes_text())

    def _sections(self, target: str | None) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        paths = [(place.name.upper(), place.help) for place in self.places]
        yield "Paths", paths + [(f"--{place.name} PATH", place.help) for place in self.path_options]
        shown: set[str] = set()

        def rows(options: Iterator[Option] | Sequence[Option]) -> list[tuple[str, str]]:
            fresh = [each for each in options if each.name not in shown and each.name in self.known]
            shown.update(each.name for each in fresh)
            return [_row(each) for each in fresh]

        yield "Options that matter first", rows([each for each in self.known.values() if each.main])
        targets = target_options() if "to" in self.known else {}
        of_all = {each.name for each in options_of(TrainingOptions)}
        if target in targets:
            yield f"Options of --to {target}", rows(options_of(targets[target]))
        elif targets:
            yield "The result, if it is a training checkpoint", rows(options_of(TrainingOptions))
        shown.update(each.name for owner in targets.values() for each in options_of(owner) if each.name not in of_all)
        apart = {f"{side}_{name}" for side in SIDES.get(self.verb, ()) for name in source_names()}
        shown |= apart
        sources = [self.known[name] for name in source_names() if name in self.known]
        yield "The source, where it does not say it itself", rows(sources)
        sides = [(f"--{side}-NAME", f"as --NAME above, for {side.upper()} alone") for side in SIDES.get(self.verb, ())]
        yield "The same for one side", sides
        yield "How", rows(list(self.known.values()))


def _parameter(each: Option) -> click.Option:
    names = [each.flag, *([each.short] if each.short else []), each.name]
    if each.repeats:
        return click.Option(names, count=True, default=0, help=each.help)
    if each.is_switch:
        return click.Option(names, is_flag=True, flag_value=True, default=None, help=each.help)
    return click.Option(names, type=OptionType(each), default=None, help=each.help, multiple=each.kind.many)


def _value(each: Option, said: Any) -> Any:
    """The value of an option, of all its flags together if it has several."""
    return tuple(chain.from_iterable(said)) if each.kind.many else said


def _row(each: Option) -> tuple[str, str]:
    names = f"{each.short}, {each.flag}" if each.short else each.flag
    takes_no_value = each.is_switch or each.repeats
    if takes_no_value:
        return names, each.help
    metavar = each.kind.metavar
    if each.kind.bare is not None:
        return f"{names} [{each.kind.words[-1]}]", each.help
    if each.kind.words:
        return f"{names} WORD", f"{each.help} [{metavar}]"
    return f"{names} {metavar}", each.help


def _named_target(words: Sequence[str]) -> str | None:
    """The target that a command line names, if it is one."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        said = following if word == "--to" else word.removeprefix("--to=") if word.startswith("--to=") else None
        if said is not None:
            with suppress(InvalidValue):
                said = str(options_of_verb("plan")["to"].kind.read(said))
            return said if said in target_options() else nearest(said, target_options())
    return None
