"""Run the program, and turn every end into an exit code and a readable message."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import click

from streamconv.cli.completion import COMPLETION, complete
from streamconv.cli.ending import Interrupted, Terminated, last_words, outcome, signals_raised
from streamconv.cli.program import ANYWHERE, PROGRAM, verbs_with
from streamconv.cli.streams import check_printed, lasting_streams
from streamconv.core.errors import StreamconvError, UsageError
from streamconv.core.kinds import Count, InvalidValue
from streamconv.core.options import ENVIRONMENT
from streamconv.core.text import printable_lines
from streamconv.io.refusals import refused_by_system

__all__ = ["guarded", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``streamconv``; returns the exit code."""
    instruction = os.environ.get(COMPLETION)
    if instruction:
        return guarded(lambda _: complete(PROGRAM, instruction), argv)
    return guarded(_run, argv)


def _run(words: list[str]) -> int:
    with PROGRAM.make_context("streamconv", words) as context:
        code: int = PROGRAM.invoke(context)
    return code


def _verbosity(words: Sequence[str]) -> int:
    """How often ``-v`` is said, whether or not the words make sense."""
    said = sum(1 if word == "--verbose" else word.count("v") for word in words if ANYWHERE.fullmatch(word))
    with suppress(InvalidValue):
        return said or Count(least=0).read(os.environ.get(f"{ENVIRONMENT}VERBOSE", ""))
    return 0


def guarded(command: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command, and give every end its exit code: no traceback without ``-vv``.

    Args:
        command: takes the words of the command line, and returns the exit code.
        argv: the words; None takes those of the process.
    """
    outcome.words = outcome.nothing
    with signals_raised(), lasting_streams():
        return _guarded(command, list(sys.argv[1:] if argv is None else argv))


def _guarded(command: Callable[[list[str]], int], words: list[str]) -> int:
    verbosity = _verbosity(words)
    try:
        code = _code_of(command, words)
        if code == 0:
            check_printed()
        return code
    except StreamconvError as error:
        _say(f"error: {error}", verbosity)
        return error.exit_code
    except click.ClickException as error:
        _say(f"error: {_readable(error)}", verbosity)
        return UsageError.exit_code
    except (Interrupted, Terminated) as end:
        number, last = last_words(end)
        _say(last, verbosity)
        return number
    except OSError as error:
        refusal = refused_by_system("go on", error)
        _say(f"error: {refusal}", verbosity)
        return refusal.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug must say that it is one
        _say(
            f"unexpected {type(error).__name__}: {error}\n  this is a bug; run with -vv and report what it prints",
            verbosity,
        )
        return 1


def _code_of(command: Callable[[list[str]], int], words: list[str]) -> int:
    """The exit code of a command, also of one that ends with its help."""
    try:
        return command(words)
    except click.exceptions.Exit as end:
        return end.exit_code
    except SystemExit as end:  # argparse's
        return end.code if isinstance(end.code, int) else 0


def _readable(error: click.ClickException) -> str:
    """What is wrong with the words of a command line, and what to say instead."""
    help_of = "" if not isinstance(error, click.UsageError) or error.ctx is None else f"{error.ctx.command_path} --help"
    remedy = f"\n  remedy: see {help_of}" if help_of else ""
    if isinstance(error, click.NoSuchOption):
        verbs = verbs_with(error.option_name)
        if verbs:
            return f"{error.option_name}: an option of {' and '.join(verbs)}{remedy}"
        near = f"\n  remedy: did you mean {' or '.join(error.possibilities)}?" if error.possibilities else remedy
        return f"{error.option_name}: no such option{near}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{(error.param.name or '').upper()} is missing{remedy}"
    return f"{error.format_message()}{remedy}"


def _say(text: str, verbosity: int) -> None:
    if verbosity >= 2:
        import traceback

        traceback.print_exc()
    print(printable_lines(text), file=sys.stderr)
