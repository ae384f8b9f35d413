"""Find the verb, run it, and turn every end into an exit code and a readable message."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from streamconv import __version__
from streamconv.cli import bench, convert, diff, families, inspect, plan, verify
from streamconv.core.errors import StreamconvError

__all__ = ["guarded", "main"]

_VERBS = {
    "convert": convert,
    "plan": plan,
    "inspect": inspect,
    "diff": diff,
    "verify": verify,
    "families": families,
    "bench": bench,
}
_EXIT_CODES = """\
exit codes: 0 done, 1 unexpected, 2 usage, 3 source not found or not supported, 4 memory budget or disk too small,
5 I/O error, 6 input damaged or unsafe, 7 values differ, 8 destination in use, 130 and 143 interrupted"""


_STATE = "the destination holds what it held before, or the whole result; the same command goes on where this ended"


class Terminated(BaseException):
    """SIGTERM, so that what is staged is cleaned up on the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``streamconv``; returns the exit code."""
    return guarded(lambda words: _run(_with_verb(words)), argv)


def _with_verb(words: list[str]) -> list[str]:
    """``streamconv SRC DST`` means ``streamconv convert SRC DST``."""
    first = next((word for word in words if word not in ("-v", "-vv", "--verbose")), None)
    if first is None or first in _VERBS or first in ("-h", "--help", "--version"):
        flags = [word for word in words if word in ("-v", "-vv", "--verbose")]
        return [*(word for word in words if word not in flags), *flags] if first in _VERBS else words
    return ["convert", *words]


def _verbosity(words: Sequence[str]) -> int:
    return sum({"-v": 1, "--verbose": 1, "-vv": 2}.get(word, 0) for word in words)


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="streamconv",
        description="Move model checkpoints between training frameworks, streamed, inside a memory budget. "
        "`streamconv SRC DST` is `streamconv convert SRC DST`.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"streamconv {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in _VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=module.HELP, description=module.HELP, epilog=_EXIT_CODES))
    if not words:
        parser.print_help()
        return 0
    arguments, rest = parser.parse_known_args(words)
    # argparse gives up on an optional DST when options stand between it and SRC: here it is still found.
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, "dst", "") is None:
        arguments.dst = rest.pop()
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run: Callable[[argparse.Namespace], int] = _VERBS[arguments.verb].run
    return run(arguments)


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


def _say(text: str, verbosity: int) -> None:
    if verbosity >= 2:
        traceback.print_exc()
    print(text, file=sys.stderr)


def _terminate(_: int, __: FrameType | None) -> None:
    raise Terminated
