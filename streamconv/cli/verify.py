"""``streamconv verify DST [--against SRC]``."""

from __future__ import annotations

from pathlib import Path

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.output import print_blocks, print_log, progress_on

__all__ = ["command", "run"]

_AGAINST = (
    "SRC: compare every value with this checkpoint, of any format and any TP and PP; both are opened anew; or a file "
    "that `streamconv digest SRC -o` wrote: compare with its digests"
)


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    places = [Place("dst", "checkpoint file or folder")]
    return Command("verify", help, places, run, path_options=[Place("against", _AGAINST)])


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code: 6 if DST is not whole, 7 if values differ, 3 if some cannot be compared."""
    output, against = call.output, call.places["against"]
    print_log(output)
    with progress_on(output, "verifying") as progress:
        source = None if against is None else Path(against)
        found = verbs.verify(Path(str(call.places["dst"])), source, call.given, progress)
    from streamconv.report.differences import verification_blocks

    print_blocks(found, verification_blocks(found), output)
    return found.exit_code
