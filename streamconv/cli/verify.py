"""``streamconv verify DST [--against SRC]``."""

from __future__ import annotations

import argparse
import json
import sys

from streamconv.cli.options import add_comparison_options, add_look_options, source_options_of
from streamconv.core.errors import UsageError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Check that a checkpoint is whole, and that it holds what another one does."
_POLICIES = ("first", "mean")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("dst", metavar="DST", help="checkpoint file or folder")
    parser.add_argument(
        "--against",
        metavar="SRC",
        help="compare every value with this checkpoint, of any format and any TP and PP; both are opened anew",
    )
    parser.add_argument(
        "--replicated",
        default="first",
        metavar="POLICY",
        help="which copy of SRC's replicated parameters DST was made of: first (default) or mean",
    )
    add_look_options(parser)
    add_comparison_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code: 6 if DST is not whole, 7 if values differ."""
    from streamconv.cli.output import show
    from streamconv.cli.progress import progress_bar
    from streamconv.report.differences import verification_blocks, verification_dict
    from streamconv.verification.verify import verify

    if arguments.replicated not in _POLICIES:
        raise UsageError(f"--replicated {arguments.replicated}: no such choice", remedy="choose first or mean")
    with progress_bar(sys.stderr, quiet=arguments.json, verb="verifying") as progress:
        found = verify(
            arguments.dst,
            arguments.against,
            source_options_of(arguments),
            replicated=arguments.replicated,
            vocab_size=arguments.vocab_size,
            max_ram=arguments.max_ram,
            io=arguments.io,
            jobs=arguments.jobs,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps(verification_dict(found), indent=2))
    else:
        show(verification_blocks(found))
    return found.exit_code
