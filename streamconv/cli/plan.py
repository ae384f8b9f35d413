"""``streamconv plan SRC``: what a conversion would do."""

from __future__ import annotations

import argparse
import json

from streamconv.cli.options import add_conversion_options, choices_of, run_choices_of

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Show what a conversion would read, write and leave behind; write nothing."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_conversion_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from streamconv.api import plan
    from streamconv.execution.fit import check_budget
    from streamconv.report.plans import plan_dict, plan_text

    work = plan(arguments.src, **choices_of(arguments))
    fit = check_budget(work, run_choices_of(arguments))
    if arguments.json:
        print(json.dumps(plan_dict(work, fit), indent=2))
    else:
        print(plan_text(work, fit, verbose=arguments.verbose > 0))
    return 0
