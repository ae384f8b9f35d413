"""``streamconv families``: which model family goes from which source to which target."""

from __future__ import annotations

import json

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation
from streamconv.cli.options import FamiliesViewOptions
from streamconv.cli.output import print_log, print_result

__all__ = ["command", "run"]


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    return Command("families", help, [], run, own=[FamiliesViewOptions])


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code. Its JSON is the list that ``to_dict`` has under ``conversions``."""
    print_log(call.output)
    table = verbs.families()
    if call.output.json:
        print(json.dumps(table.to_dict()["conversions"], indent=2))
        return 0
    from streamconv.report.capabilities import capability_markdown

    print_result(table, call.output, capability_markdown(table) if call.given.get("markdown") else None)
    return 0
