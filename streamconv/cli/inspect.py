"""``streamconv inspect PATH``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.options import InspectViewOptions
from streamconv.cli.output import print_blocks, print_log, progress_on
from streamconv.core.errors import UsageError
from streamconv.inspection.options import InspectOptions
from streamconv.io.refusals import refusals
from streamconv.io.whole_file import check_place

__all__ = ["command", "run"]

# How a page of this program and a picture begin: nothing else is replaced by one.
_PAGE = b"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src '"
_PICTURE = b"\x89PNG"


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    place = Place("path", "checkpoint file or folder, of any format that is read")
    return Command("inspect", help, [place], run, own=[InspectViewOptions])


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code."""
    output, options, view = call.output, call.given.take(InspectOptions), call.given.take(InspectViewOptions)
    plot = None if "plot" in call.given.ambient and not options.stats else view.plot
    if plot and not options.stats:
        raise UsageError("--plot draws statistics", remedy="add --stats")
    print_log(output)
    for place, mark in ((view.html, _PAGE), (plot, _PICTURE)):
        if place:
            check_place(Path(place), mark)
    with progress_on(output, "reading", wanted=options.stats or options.check) as progress:
        report = verbs.inspect(Path(str(call.places["path"])), call.given, progress)
    if plot or view.html:
        _write_pictures(report.to_dict(), view.html, plot)
    from streamconv.report.inspection import Detail, report_blocks

    detail = Detail(tensors=report.lists_tensors, tree=view.tree, globals=view.globals)
    print_blocks(report, report_blocks(report, detail), output)
    return report.exit_code if view.strict else 0


def _write_pictures(report: dict[str, Any], html: str | None, plot: str | None) -> None:
    if html:
        from streamconv.report.html import html_report

        page = html_report(report)
        with refusals("write the page", Path(html)):
            Path(html).write_text(page, encoding="utf-8")
    if plot:
        from streamconv.report.plot import plot_norms

        with refusals("write the picture", Path(plot)):
            plot_norms(report, Path(plot))
