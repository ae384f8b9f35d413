"""``streamconv digest PATH [-o FILE]``."""

from __future__ import annotations

from pathlib import Path

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.options import DigestViewOptions
from streamconv.cli.output import print_blocks, print_log, progress_on
from streamconv.io.whole_file import check_place
from streamconv.verification.digests import MARK

__all__ = ["command", "run"]


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    place = Place("path", "checkpoint file or folder")
    return Command("digest", help, [place], run, own=[DigestViewOptions])


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code."""
    output, view = call.output, call.given.take(DigestViewOptions)
    print_log(output)
    if view.output is not None:
        check_place(Path(view.output), MARK)
    with progress_on(output, "digesting") as progress:
        found = verbs.digest(Path(str(call.places["path"])), call.given, progress)
    from streamconv.report.digests import digest_blocks

    if view.output is not None:
        found.save(view.output)
    if output.json:
        print(found.as_json())
    else:
        print_blocks(found, digest_blocks(found, lists_all=view.output is None), output)
    return 0
