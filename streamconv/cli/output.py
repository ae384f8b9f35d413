"""Print results: in colour on a terminal, plain in a pipe, as JSON for machines; and the log, if it is wanted."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from streamconv.core.result import Result
from streamconv.core.text import printable_lines
from streamconv.report.progress import progress_bar, without_bar

if TYPE_CHECKING:
    from streamconv.cli.options import OutputOptions
    from streamconv.report.blocks import Block

__all__ = ["notice_on", "print_blocks", "print_log", "print_result", "progress_on"]


def print_result(result: Result, output: OutputOptions, text: str | None = None) -> None:
    """Print a result on stdout; ``text`` instead of its own, if it is given."""
    if output.json:
        print(json.dumps(result.to_dict(), indent=2))
    elif not output.quiet:
        print(printable_lines(str(result) if text is None else text))


def print_blocks(result: Result, blocks: Sequence[Block], output: OutputOptions) -> None:
    """Print a result that is a document."""
    if output.json or output.quiet:
        print_result(result, output)
    elif sys.stdout.isatty():
        from streamconv.report import terminal

        terminal.show(blocks, sys.stdout)
    else:
        from streamconv.report.blocks import plain_text

        print(plain_text(blocks))


def progress_on(
    output: OutputOptions, verb: str, *, wanted: bool = True
) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A function to call with the progress, which is shown on stderr."""
    return progress_bar(sys.stderr, quiet=output.json or output.quiet or not wanted, verb=verb)


def notice_on(output: OutputOptions) -> Callable[[str], None]:
    """A function to call with what a user should know at once: a line on stderr, above the bar that may be there."""

    def notice(words: str) -> None:
        if not output.quiet:
            print(f"{without_bar(sys.stderr)}{printable_lines(words)}", file=sys.stderr, flush=True)

    return notice


def print_log(output: OutputOptions) -> None:
    """With ``-v``, print what happens meanwhile on stderr."""
    from streamconv.core.log import log

    for handler in [handler for handler in log.handlers if isinstance(handler, _OnStderr)]:
        log.removeHandler(handler)  # of a command that ran before in this process
    if output.verbose:
        log.addHandler(_OnStderr())
        log.setLevel(logging.INFO if output.verbose == 1 else logging.DEBUG)


class _OnStderr(logging.Handler):
    """Prints what is logged on stderr, above the bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        words = f"{record.relativeCreated:7.0f} ms  {record.getMessage()}"
        print(f"{without_bar(sys.stderr)}{words}", file=sys.stderr, flush=True)
