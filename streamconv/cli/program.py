"""The program and its verbs, as click sees them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from streamconv.cli.exit_codes import exit_codes_text
from streamconv.core.errors import UsageError
from streamconv.core.kinds import nearest
from streamconv.core.version import __version__

__all__ = ["ANYWHERE", "PROGRAM", "VERBS", "verbs_with"]

VERBS = {
    "convert": "Convert a checkpoint.",
    "plan": "Show what a conversion would read, write and leave behind; write nothing.",
    "inspect": "Show what is inside a checkpoint file or folder.",
    "diff": "Say what is different between two checkpoints, of any formats.",
    "verify": "Check that a checkpoint is whole, and that it holds what another one does.",
    "digest": "Take a digest of every parameter, the same for every layout of the model.",
    "extract": "Write one tensor, whole, to a file of its own.",
    "families": "Show which model families go from which source to which target, and why others do not.",
    "bench": "Measure a folder's disk, and predict how long a conversion would take.",
}
ANYWHERE = re.compile(r"-[vq]+|--verbose|--quiet")
"""Words that may stand before the verb, whatever it is."""


class _Streamconv(click.Group):
    """The program: each verb is a module, which is imported when the verb is meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in VERBS else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_verb(args, is_unfinished=ctx.resilient_parsing))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            # Without a verb, the options are convert's.
            items = [*_command("convert").shell_complete(ctx, incomplete), *super().shell_complete(ctx, incomplete)]
            return list({item.value: item for item in items}.values())
        verbs = [CompletionItem(verb, help=words) for verb, words in VERBS.items() if verb.startswith(incomplete)]
        # Without a verb, the first word is a folder to convert.
        return verbs or [CompletionItem(incomplete, type="file")]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("streamconv", "VERB [OPTIONS] ...")
        formatter.write_usage("streamconv", "[OPTIONS] SRC DST")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))
        with formatter.section("Options"):
            formatter.write_dl([("--version", "show the version"), ("-h, --help", "show this; after a verb, its help")])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(exit_codes_text())


def verbs_with(flag: str) -> list[str]:
    """The verbs that have an option of this name."""
    return [verb for verb in VERBS if any(flag in option.opts for option in _command(verb).params)]


def _command(verb: str) -> click.Command:
    command: click.Command = import_module(f"streamconv.cli.{verb}").command(VERBS[verb])
    return command


def _with_verb(words: list[str], *, is_unfinished: bool) -> list[str]:
    """``streamconv SRC DST`` means ``streamconv convert SRC DST``.

    Args:
        words: the command line.
        is_unfinished: whether it is still being typed, and wants to be completed.

    Raises:
        UsageError: the first word is no verb and no path, but nearly a verb.
    """
    first = next((word for word in words if not ANYWHERE.fullmatch(word)), None)
    if first is None:
        return words or ["--help"]
    if first in ("-h", "--help", "--version"):
        return [first] if first == "--version" else _helped(words, first)
    place = _first_place(words)
    if place is None:
        return ["convert", *words]
    first = words[place]
    if first in VERBS:
        return [first, *words[:place], *words[place + 1 :]]
    is_taken = is_unfinished or os.path.exists(first)  # noqa: PTH110 - a path may be too long
    meant = None if is_taken else nearest(first, VERBS)
    if meant is not None:
        raise UsageError(f"{first}: no such verb, and no such folder to convert", remedy=f"did you mean {meant}?")
    return ["convert", *words]


def _helped(words: list[str], asks: str) -> list[str]:
    """``streamconv --help plan`` is ``streamconv plan --help``; options alone are ``convert``'s."""
    rest = [word for word in words if word != asks and not ANYWHERE.fullmatch(word)]
    place = _first_place(rest)
    if not rest or (place is not None and rest[place] not in VERBS):
        return [asks]
    return ["convert", asks, *rest] if place is None else [rest[place], asks, *rest[:place], *rest[place + 1 :]]


def _first_place(words: Sequence[str]) -> int | None:
    """Where the first word is that is no option and no value of one; None if there is none."""
    follows_option = False
    for place, word in enumerate(words):
        if follows_option:
            follows_option = False
        elif word == "--":
            return place + 1 if place + 1 < len(words) else None
        elif word == "-" or not word.startswith("-"):
            return place
        else:
            follows_option = not ANYWHERE.fullmatch(word) and _takes_value(word)
    return None


def _takes_value(word: str) -> bool:
    """Whether an option, as it is spelled, has its value in the next word."""
    params = (param for verb in VERBS for param in _command(verb).params if word in param.opts)
    return any(isinstance(param, click.Option) and not (param.is_flag or param.count) for param in params)


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        print(f"streamconv {__version__}")
        ctx.exit()


PROGRAM = _Streamconv(
    "streamconv",
    help="Move model checkpoints between training frameworks, streamed, inside a memory budget. Without a verb it "
    "converts.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version)],
)
