"""``streamconv plan SRC``: what a conversion would do."""

from __future__ import annotations

from pathlib import Path

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.output import print_log, print_result

__all__ = ["SRC", "command", "run"]

SRC = Place("src", "checkpoint: a root (with `latest` or a tracker), a tag's folder, or a Hugging Face model's")


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    return Command("plan", help, [SRC], run)


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code."""
    output = call.output
    print_log(output)
    work = verbs.plan(Path(str(call.places["src"])), call.given)
    from streamconv.report.plans import plan_text

    print_result(work, output, plan_text(work, verbose=output.verbose > 0))
    return 0
