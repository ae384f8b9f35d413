"""``streamconv diff A B``."""

from __future__ import annotations

from pathlib import Path

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.output import print_blocks, print_log, progress_on

__all__ = ["command", "run"]


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    return Command("diff", help, [Place("a", "checkpoint file or folder"), Place("b", "another")], run)


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code: 7 if anything differs, dtypes included, 6 or 3 if not all was compared."""
    output = call.output
    print_log(output)
    with progress_on(output, "comparing") as progress:
        found = verbs.diff(Path(str(call.places["a"])), Path(str(call.places["b"])), call.given, progress)
    from streamconv.report.differences import comparison_blocks

    print_blocks(found, comparison_blocks(found), output)
    return found.exit_code
