"""``streamconv bench DIR``: how fast this disk is, and how long a conversion would take on it."""

from __future__ import annotations

from pathlib import Path

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.output import print_log, print_result

__all__ = ["command", "run"]


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    places = [Place("dir", "folder on the disk that the result would go to")]
    src = Place("src", "checkpoint whose conversion is to be predicted")
    return Command("bench", help, places, run, path_options=[src])


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code."""
    src = call.places["src"]
    print_log(call.output)
    report = verbs.bench(Path(str(call.places["dir"])), None if src is None else Path(src), call.given)
    print_result(report, call.output)
    return 0
