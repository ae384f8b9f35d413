"""``streamconv convert SRC DST``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from streamconv.api import verbs
from streamconv.cli import plan as plan_verb
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.ending import outcome
from streamconv.cli.options import ConvertViewOptions, OutputOptions
from streamconv.cli.output import notice_on, print_log, print_result, progress_on
from streamconv.core.errors import UsageError
from streamconv.core.options import Given
from streamconv.core.text import printable_lines
from streamconv.planning.options import NOWHERE

if TYPE_CHECKING:
    from streamconv.planning.plan import Plan

__all__ = ["command", "execute", "run"]

_UNDECIDED = (
    "the destination holds the whole result, or what it held before: then the same command goes on where this ended"
)


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    places = (plan_verb.SRC, Place("dst", "folder for the result; it appears there whole, at the end", required=False))
    return Command("convert", help, places, run, own=[ConvertViewOptions])


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code."""
    dst, given = call.places["dst"], call.given
    discards = given.get("to") == NOWHERE
    if discards and dst is not None and "to" in given.ambient:
        discards, given = False, given.without("to")  # a variable that does not go with DST
    if discards and dst is not None:
        raise UsageError(
            f"--to {NOWHERE} discards the result, and takes no DST", remedy="leave out DST, or choose another --to"
        )
    if not discards and dst is None:
        raise UsageError(
            "DST is missing", remedy=f"say where the result shall go, or --to {NOWHERE} to measure without writing"
        )
    if given.take(ConvertViewOptions).dry_run:
        return plan_verb.run(Invocation(call.places, given))
    print_log(call.output)
    return execute(verbs.planned(Path(str(call.places["src"])), given), None if dst is None else Path(dst), given)


def execute(work: Plan, dst: Path | None, given: Given) -> int:
    """Carry out a plan with progress on stderr and the report on stdout."""
    from streamconv.report.plans import plan_text

    output = given.take(OutputOptions)
    if not output.json and not output.quiet:
        print(printable_lines(plan_text(work, verbose=output.verbose > 0)), file=sys.stderr)
    if dst is not None:
        outcome.words = _UNDECIDED
    with progress_on(output, "converting") as progress:
        report = verbs.carried_out(work, dst, given, progress, notice_on(output))
    if dst is not None:
        outcome.words = f"{dst} holds the whole result"
    print_result(report, output)
    return 0
