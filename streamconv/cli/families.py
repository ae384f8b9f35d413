"""``streamconv families``: which model family goes from which source to which target."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Show which model families go from which source to which target, and why others do not."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--markdown", action="store_true", help="print the table as the documentation shows it")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="twice: tracebacks too")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from streamconv.planning.capabilities import capability_table
    from streamconv.report.capabilities import capability_markdown, capability_text

    cells = list(capability_table())
    if arguments.json:
        rows: list[dict[str, Any]] = [
            {"family": c.family.name, "source": c.source.name, "target": c.target.name, "refusal": c.refusal}
            for c in cells
        ]
        print(json.dumps(rows, indent=2))
    else:
        print(capability_markdown(cells) if arguments.markdown else capability_text(cells))
    return 0
