"""``streamconv convert SRC DST``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from streamconv.cli import plan as plan_verb
from streamconv.cli.options import DEFAULT_TARGET, add_conversion_options, choices_of, run_choices_of
from streamconv.core.errors import UsageError

if TYPE_CHECKING:
    from streamconv.planning.plan import Plan

__all__ = ["HELP", "add_arguments", "execute", "run"]

HELP = "Convert a checkpoint."
_NOWHERE = "null"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_conversion_options(parser)
    parser.add_argument(
        "dst", metavar="DST", nargs="?", help="folder for the result; it appears there whole, at the end"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing, as `streamconv plan`")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint in DST, once the new one is durable"
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard what a conversion that ended early left in DST, and begin anew"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    discards = arguments.to == _NOWHERE
    if discards == (arguments.dst is not None):
        raise UsageError(
            f"--to {_NOWHERE} discards the result, and takes no DST" if discards else "DST is missing",
            remedy="say where the result shall go, or --to null to measure without writing",
        )
    if discards:
        arguments.to = DEFAULT_TARGET
    if arguments.dry_run:
        return plan_verb.run(arguments)
    from streamconv.api import plan

    return execute(plan(arguments.src, **choices_of(arguments)), arguments)


def execute(work: Plan, arguments: argparse.Namespace) -> int:
    """Carry out a plan with progress on stderr and the report on stdout."""
    from streamconv.cli.progress import progress_bar
    from streamconv.execution.run import run_plan
    from streamconv.report.plans import plan_text, report_dict, report_text

    if not arguments.json:
        print(plan_text(work, verbose=arguments.verbose > 0), file=sys.stderr)
    with progress_bar(sys.stderr, quiet=arguments.json) as progress:
        report = run_plan(
            work,
            arguments.dst,
            overwrite=arguments.overwrite,
            restart=arguments.restart,
            progress=progress,
            **run_choices_of(arguments),
        )
    print(json.dumps(report_dict(report), indent=2) if arguments.json else report_text(report))
    return 0
