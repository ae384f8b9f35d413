"""``streamconv diff A B``."""

from __future__ import annotations

import argparse
import json
import sys

from streamconv.cli.options import add_comparison_options, add_look_options, source_options_of

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Say what is different between two checkpoints, of any formats."
_DIFFERENT = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("a", metavar="A", help="checkpoint file or folder")
    parser.add_argument("b", metavar="B", help="another")
    add_look_options(parser)
    add_comparison_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code: 7 if anything differs, dtypes included."""
    from streamconv.cli.output import show
    from streamconv.cli.progress import progress_bar
    from streamconv.report.differences import comparison_blocks, comparison_dict
    from streamconv.verification.verify import diff

    with progress_bar(sys.stderr, quiet=arguments.json, verb="comparing") as progress:
        found = diff(
            arguments.a,
            arguments.b,
            source_options_of(arguments),
            vocab_size=arguments.vocab_size,
            max_ram=arguments.max_ram,
            io=arguments.io,
            jobs=arguments.jobs,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps(comparison_dict(found), indent=2))
    else:
        show(comparison_blocks(found))
    return 0 if found.is_equal else _DIFFERENT
