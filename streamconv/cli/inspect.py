"""``streamconv inspect PATH``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from streamconv.cli.options import add_checkpoint_options, add_look_options, source_options_of
from streamconv.core.errors import StorageError, UsageError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Show what is inside a checkpoint file or folder."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("path", metavar="PATH", help="checkpoint file or folder, of any format that is read")
    show = parser.add_argument_group("what to show")
    show.add_argument("--tensors", metavar="GLOB", help="list the tensors whose names match, such as '*.mlp.*'")
    show.add_argument("--tree", action="store_true", help="list everything: tensors, files, arguments, other values")
    show.add_argument("--globals", action="store_true", help="list every class and function that pickles name")
    show.add_argument("--target-tp", type=int, metavar="N", help="map the source's files to a target of this TP")
    show.add_argument("--target-pp", type=int, metavar="N", help="map the source's files to a target of this PP")
    values = parser.add_argument_group("reading the data")
    values.add_argument(
        "--stats", action="store_true", help="stream all values: min, max, mean, std, zeros, NaN, Inf, drifted replicas"
    )
    values.add_argument("--check", action="store_true", help="hold every record against its CRC-32")
    values.add_argument("--plot", metavar="PNG", help="with --stats: a picture of each layer's norms")
    values.add_argument("--html", metavar="HTML", help="a report on one self-contained page")
    add_look_options(parser)
    parser.add_argument(
        "--strict", action="store_true", help="exit with 6 if something is broken or missing, 7 if values stand out"
    )
    add_checkpoint_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from streamconv.cli.progress import progress_bar
    from streamconv.inspection.inspect import Inspection, inspect, report_dict

    if arguments.plot and not arguments.stats:
        raise UsageError("--plot draws statistics", remedy="add --stats")
    options = Inspection(
        pattern=arguments.tensors,
        target_tp=arguments.target_tp,
        target_pp=arguments.target_pp,
        statistics=arguments.stats,
        check=arguments.check,
        max_ram=arguments.max_ram,
        io=arguments.io,
        jobs=arguments.jobs,
        source=source_options_of(arguments) if Path(arguments.path).is_dir() else None,
    )
    reads = arguments.stats or arguments.check
    with progress_bar(sys.stderr, quiet=arguments.json or not reads, verb="reading") as progress:
        report = inspect(arguments.path, options, progress)
    if arguments.plot or arguments.html:
        _write_pictures(report_dict(report), arguments)
    if arguments.json:
        print(json.dumps(report_dict(report), indent=2))
    else:
        from streamconv.cli.output import show
        from streamconv.report.inspection import Detail, report_blocks

        detail = Detail(tensors=arguments.tensors is not None, tree=arguments.tree, globals=arguments.globals)
        show(report_blocks(report, detail))
    return report.exit_code() if arguments.strict else 0


def _write_pictures(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.html:
        from streamconv.report.html import html_report

        page = html_report(report)
        try:
            Path(arguments.html).write_text(page, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write the page: {error.strerror}", where=arguments.html) from error
    if arguments.plot:
        from streamconv.report.plot import plot_norms

        plot_norms(report, Path(arguments.plot))
