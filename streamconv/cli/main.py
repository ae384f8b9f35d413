"""Find the verb, run it, and turn every end into an exit code and a readable message."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING

import click

from streamconv import __version__
from streamconv.cli.exit_codes import exit_codes_text
from streamconv.core.errors import StreamconvError, UsageError
from streamconv.core.kinds import nearest
from streamconv.core.options import ENVIRONMENT

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["guarded", "main"]

VERBS = {
    "convert": "Convert a checkpoint.",
    "plan": "Show what a conversion would read, write and leave behind; write nothing.",
    "inspect": "Show what is inside a checkpoint file or folder.",
    "diff": "Say what is different between two checkpoints, of any formats.",
    "verify": "Check that a checkpoint is whole, and that it holds what another one does.",
    "families": "Show which model families go from which source to which target, and why others do not.",
    "bench": "Measure a folder's disk, and predict how long a conversion would take.",
}
_COMPLETION = "_STREAMCONV_COMPLETE"
_ANYWHERE = ("-v", "-vv", "--verbose", "-q", "--quiet")
_STATE = "the destination holds what it held before, or the whole result; the same command goes on where this ended"


class Terminated(BaseException):
    """SIGTERM, so that what is staged is cleaned up on the way out."""


class _Streamconv(click.Group):
    """The program: each verb is a module, which is imported when the verb is meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"streamconv.cli.{cmd_name}").command(VERBS[cmd_name])
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_verb(args))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(verb, help=words) for verb, words in VERBS.items() if verb.startswith(incomplete)]
        # Without a verb, the first word is a folder to convert.
        return verbs or [*click.Command.shell_complete(self, ctx, incomplete), CompletionItem(incomplete, type="file")]

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


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        print(f"streamconv {__version__}")
        ctx.exit()


_PROGRAM = _Streamconv(
    "streamconv",
    help="Move model checkpoints between training frameworks, streamed, inside a memory budget. Without a verb it "
    "converts.",
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version)],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``streamconv``; returns the exit code."""
    if _COMPLETION in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(_PROGRAM, {}, "streamconv", _COMPLETION, os.environ[_COMPLETION])
    return guarded(_run, argv)


def _run(words: list[str]) -> int:
    _warn_of_variables()
    with _PROGRAM.make_context("streamconv", words) as context:
        code: int = _PROGRAM.invoke(context)
    return code


def _with_verb(words: list[str]) -> list[str]:
    """``streamconv SRC DST`` means ``streamconv convert SRC DST``.

    Raises:
        UsageError: the first word is no verb and no path, but nearly a verb.
    """
    first = next((word for word in words if word not in _ANYWHERE), None)
    if first is None:
        return words or ["--help"]
    if first in VERBS:
        flags = [word for word in words[: words.index(first)] if word in _ANYWHERE]
        return [first, *flags, *words[words.index(first) + 1 :]]
    if first in ("-h", "--help", "--version"):
        return [first]
    meant = None if first.startswith("-") or os.path.exists(first) else nearest(first, VERBS)  # noqa: PTH110 - a path may be too long
    if meant is not None:
        raise UsageError(f"{first}: no such verb, and no such folder to convert", remedy=f"did you mean {meant}?")
    return ["convert", *words]


def _warn_of_variables() -> None:
    """Warn of variables that look like options and are none."""
    found = [name for name in os.environ if name.startswith(ENVIRONMENT)]
    if not found:
        return
    from streamconv.api.options import known_options
    from streamconv.cli.options import OWN_OPTIONS
    from streamconv.core.options import all_options

    options = [*known_options().values(), *all_options(OWN_OPTIONS).values()]
    known = {each.variable for each in options if each.variable is not None}
    refused = {ENVIRONMENT + each.flag[2:].replace("-", "_").upper(): each.flag for each in options if each.destroys}
    for name in sorted(set(found) - known):
        if name in refused:
            print(f"warning: {name} is not read: say {refused[name]} on the command line", file=sys.stderr)
        else:
            meant = nearest(name, known)
            words = f": did you mean {meant}?" if meant else ""
            print(f"warning: {name} is no option{words}", file=sys.stderr)


def _verbosity(words: Sequence[str]) -> int:
    return sum({"-v": 1, "--verbose": 1, "-vv": 2}.get(word, 0) for word in words)


def guarded(command: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command, and give every end its exit code: no traceback without ``-vv``.

    Args:
        command: takes the words of the command line, and returns the exit code.
        argv: the words; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbosity = _verbosity(words)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return command(words)
    except StreamconvError as error:
        _say(f"error: {error}", verbosity)
        return error.exit_code
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        _say(f"error: {_readable(error)}", verbosity)
        return UsageError.exit_code
    except KeyboardInterrupt:
        _say(f"interrupted; {_STATE}", verbosity)
        return 130
    except Terminated:
        _say(f"terminated; {_STATE}", verbosity)
        return 143
    except BrokenPipeError:
        # Whoever read our output is gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _say(f"error: {error.strerror}\n  where: {error.filename}", verbosity)
        return 5
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug must say that it is one
        _say(
            f"unexpected {type(error).__name__}: {error}\n  this is a bug; run with -vv and report what it prints",
            verbosity,
        )
        return 1


def _readable(error: click.ClickException) -> str:
    """What is wrong with the words of a command line, and what to say instead."""
    help_of = "" if not isinstance(error, click.UsageError) or error.ctx is None else f"{error.ctx.command_path} --help"
    remedy = f"\n  remedy: see {help_of}" if help_of else ""
    if isinstance(error, click.NoSuchOption):
        near = f"\n  remedy: did you mean {' or '.join(error.possibilities)}?" if error.possibilities else remedy
        return f"{error.option_name}: no such option{near}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{(error.param.name or '').upper()} is missing{remedy}"
    return f"{error.format_message()}{remedy}"


def _say(text: str, verbosity: int) -> None:
    if verbosity >= 2:
        import traceback

        traceback.print_exc()
    print(text, file=sys.stderr)


def _terminate(_: int, __: FrameType | None) -> None:
    raise Terminated
