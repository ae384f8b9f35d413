"""``streamconv bench DIR``: how fast this disk is, and how long a conversion would take on it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from streamconv.cli.options import add_run_options, add_source_options, add_target_options, choices_of, run_choices_of

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Measure a folder's disk, and predict how long a conversion would take."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("dir", metavar="DIR", help="folder on the disk that the result would go to")
    parser.add_argument("--src", metavar="SRC", help="checkpoint whose conversion is to be predicted")
    parser.add_argument("--size", default="1G", help="bytes of the files that are written and read (default: 1G)")
    add_target_options(parser)
    add_source_options(parser)
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from streamconv.api import plan
    from streamconv.execution.disk_speed import measure_disk, predict
    from streamconv.execution.fit import settings_for
    from streamconv.memory.budget import parse_size
    from streamconv.report.plans import speed_dict, speed_text

    began = time.monotonic()
    work = None if arguments.src is None else plan(arguments.src, **choices_of(arguments))
    planning = time.monotonic() - began
    settings = settings_for(work, run_choices_of(arguments))
    speed = measure_disk(Path(arguments.dir), parse_size(arguments.size, "--size"), settings)
    prediction = None if work is None else predict(work, speed)
    if arguments.json:
        print(json.dumps(speed_dict(speed, prediction, planning), indent=2))
    else:
        print(speed_text(speed, prediction, planning))
    return 0
