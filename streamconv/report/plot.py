"""A report's norms as one PNG: a line for each parameter kind, a mark where a layer is flagged. Needs matplotlib."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.core.errors import UsageError
from streamconv.report.curves import Chart, Panel, Point, chart

__all__ = ["plot_norms"]

_INCHES, _DPI = (12.0, 7.2), 150
_COLOURS = ("#2b6cb0", "#c2651d", "#3f8a4b", "#7b4fb5", "#0f8a94", "#b0327a", "#8a7414", "#5b6675")
_DASHES = ("-", "--", ":")
_BROKEN = "#b3261e"
_LEGEND_ROWS = 16
_NAMED_PLACES = 12  # At most this many flagged layers have their numbers written above the panel.
_STYLE = {
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.1,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def plot_norms(report: Mapping[str, Any], path: Path) -> None:
    """Draw the root mean square of each parameter kind over the layers of ``report`` into the PNG ``path``.

    If no tensor belongs to a layer, the tensors are drawn in their order.

    Raises:
        UsageError: the report has no statistics, or matplotlib is not installed.
        OSError: the file cannot be written.
    """
    drawn = chart(report)
    if not drawn.panels:
        raise UsageError("a plot needs the statistics of the tensors", remedy="inspect with --stats")
    try:
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
        canvases = importlib.import_module("matplotlib.backends.backend_agg")
    except ImportError as error:
        raise UsageError(
            "a plot needs matplotlib, which is not installed", remedy='pip install "streamconv[plot]"'
        ) from error
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        canvases.FigureCanvasAgg(figure)
        figure.suptitle(_title(report), fontsize=11, x=0.01, ha="left")
        axes = figure.subplots(len(drawn.panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, axis in zip(drawn.panels, axes, strict=True):
            _draw(panel, axis)
        axes[-1].set_xlabel("layer" if drawn.by == "layer" else "tensor, in the report's order")
        _count_in_whole_numbers(drawn, axes[-1])
        figure.savefig(path, format="png", metadata={"Software": None})


def _draw(panel: Panel, axis: Any) -> None:
    handles, labels = [], []
    for index, curve in enumerate(panel.curves):
        colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
        (line,) = axis.plot(
            [point.x for point in curve.points],
            [_height(point.rms, panel) for point in curve.points],
            dash,
            color=colour,
            linewidth=1.3,
            marker="o",
            markersize=3.5 if len(curve.points) <= 12 else 1.6,
        )
        handles.append(line)
        labels.append(_printable(curve.parameter, 44))
    _scale(panel, axis)
    axis.set_title(f"{panel.title}: root mean square{', logarithmic' if panel.log else ''}", pad=16)
    axis.grid(axis="y", color="#e6e6e3", linewidth=0.7)
    axis.set_axisbelow(True)
    if len(labels) > _LEGEND_ROWS:
        labels = [*labels[: _LEGEND_ROWS - 1], f"and {len(labels) - _LEGEND_ROWS + 1} more"]
        handles = [*handles[: _LEGEND_ROWS - 1], axis.plot([], [], linestyle="")[0]]
    if _mark(panel, axis):
        handles.append(axis.plot([], [], "X", color=_BROKEN, markersize=8, markeredgecolor="white")[0])
        labels.append("flagged")
    axis.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0)


def _mark(panel: Panel, axis: Any) -> bool:
    """Draw a band over each flagged place, its number above, a cross at each flagged value. False if there is none."""
    flagged = sorted({point.x for point in _flagged(panel)})
    places = [point.x for curve in panel.curves for point in curve.points]
    half = min(0.4, 0.008 * (max(places) - min(places)) + 0.01)
    for x in flagged:
        axis.axvspan(x - half, x + half, color=_BROKEN, alpha=0.13, linewidth=0)
    for x in flagged if len(flagged) <= _NAMED_PLACES else ():
        axis.annotate(
            str(x),
            (x, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            color=_BROKEN,
            fontsize=8,
            fontweight="bold",
        )
    drawn = [point for point in _flagged(panel) if not math.isnan(_height(point.rms, panel))]
    undrawn = [point for point in _flagged(panel) if math.isnan(_height(point.rms, panel))]
    _crosses(axis, [point.x for point in drawn], [_height(point.rms, panel) for point in drawn])
    # A value that is not finite has no height: its cross is at the upper edge.
    _crosses(axis, [point.x for point in undrawn], [1.0] * len(undrawn), transform=axis.get_xaxis_transform())
    return bool(flagged)


def _scale(panel: Panel, axis: Any) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2 and 5 of each decade, or at decades if there are many."""
    if not panel.log:
        return
    ticker = importlib.import_module("matplotlib.ticker")
    values = [point.rms for curve in panel.curves for point in curve.points if point.rms]
    few = max(values) < 400 * min(values)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def _crosses(axis: Any, places: list[int], heights: list[float], **more: Any) -> None:
    if places:
        style = {"linestyle": "", "color": _BROKEN, "markersize": 8, "markeredgecolor": "white", "zorder": 5}
        (marks,) = axis.plot(places, heights, marker="X", clip_on=False, **style, **more)
        marks.set_in_layout(False)


def _flagged(panel: Panel) -> list[Point]:
    return [point for curve in panel.curves for point in curve.points if point.flags]


def _height(rms: float | None, panel: Panel) -> float:
    """The height of a value; NaN, which leaves a gap, if the axis cannot show it."""
    return math.nan if rms is None or (panel.log and rms <= 0) else rms


def _count_in_whole_numbers(drawn: Chart, axis: Any) -> None:
    places = [point.x for panel in drawn.panels for curve in panel.curves for point in curve.points]
    axis.set_xlim(min(places) - 0.6, max(places) + 0.6)
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=24, steps=[1, 2, 5, 10], min_n_ticks=1)


def _title(report: Mapping[str, Any]) -> str:
    what, path = report.get("what"), report.get("path")
    return _printable(": ".join(str(part) for part in (path, what) if part) or "checkpoint", 130)


def _printable(text: str, most: int) -> str:
    """``text`` in ASCII: any font can draw it, and no control character or line end is left in it."""
    plain = text.encode("unicode_escape").decode("ascii")
    if len(plain) > most:
        plain = f"...{plain[3 - most :]}"
    # matplotlib leaves labels that begin with an underscore out of a legend.
    return f" {plain}" if plain.startswith("_") else plain
