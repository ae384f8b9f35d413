"""Draw what was measured: memory over time, throughput against budget, time beside `cp`, time against size.

    python benchmarks/pictures.py results/*.json --out pictures --format svg

Each JSON file of compare.py, budget_curve.py, memory_over_time.py and scaling.py becomes one picture of the same name.
Needs matplotlib, which nothing else here does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Report = dict[str, Any]
OURS, RIVALS = "#1b6ca8", ("#7a7a7a", "#c26a2d", "#8a5a9e", "#4f8a5b", "#a08a2f", "#3c3c3c")
DASHES = {"streamconv-direct": "--", "streamconv-pread": ":"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "streamconv",
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour for streamconv in all its variants, others for the rest."""
    rivals = [name for name in names if not name.startswith("streamconv")]
    return dict.fromkeys(names, OURS) | {name: RIVALS[at % len(RIVALS)] for at, name in enumerate(rivals)}


def of_what(report: Report) -> str:
    """The job in a few words."""
    job = report["job"]
    source = f"{job['source_nbytes'] / 1e9:.1f} GB, " if "source_nbytes" in job else ""
    return f"{source}to TP {job['tp']} PP {job['pp']}, cache {job['cache'].split(' ')[0]}"


def compare(report: Report, plt: Any) -> Any:
    """Wall time of each contender: every run a dot, the median a bar."""
    done = {name: runs for name, runs in report["samples"].items() if report["summary"][name]["outcome"] == "done"}
    names = list(done)
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.34 * len(names)), layout="constrained")
    palette = colours(names)
    for at, name in enumerate(names):
        axes.barh(at, report["summary"][name]["wall_seconds"], height=0.6, color=palette[name], alpha=0.75)
        walls = [run["wall_seconds"] for run in done[name]]
        axes.plot(walls, [at] * len(walls), linestyle="", marker="o", markersize=3, color="black", alpha=0.6)
    if "cp" in done:
        axes.axvline(report["summary"]["cp"]["wall_seconds"], color="#7a7a7a", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("wall time to the disk, s (bar: median, dots: runs)")
    axes.set_title(of_what(report))
    return figure


def budget_curve(report: Report, plt: Any) -> Any:
    """Throughput against the memory budget, which is the cgroup's limit."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    nbytes = report["job"]["source_nbytes"]
    names = sorted({key.partition(" ")[0] for key in report["samples"]}, reverse=True)
    palette, budgets = colours(names), set[int]()
    for name in names:
        points = sorted(
            (int(key.partition(" ")[2].removesuffix("M")), [nbytes / run["wall_seconds"] / 1e6 for run in runs])
            for key, runs in report["samples"].items()
            if key.partition(" ")[0] == name and report["summary"][key]["outcome"] == "done"
        )
        middles = [nbytes / report["summary"][f"{name} {budget}M"]["wall_seconds"] / 1e6 for budget, _ in points]
        axes.plot([budget for budget, _ in points], middles, color=palette[name], linewidth=1.5, label=name)
        for budget, speeds in points:
            axes.plot([budget] * len(speeds), speeds, linestyle="", marker="o", markersize=3, color=palette[name])
            budgets.add(budget)
    least = report["search"]["smallest_nbytes"]
    if least is not None:
        axes.axvline(least / 2**20, color="black", linewidth=0.8, linestyle=":")
        axes.annotate(f" finishes from {least >> 20} MiB", (least / 2**20, 0), va="bottom", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(budgets), [str(budget) for budget in sorted(budgets)])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("memory budget and cgroup limit, MiB")
    axes.set_ylabel("source bytes, MB/s")
    axes.set_title(of_what(report))
    axes.legend()
    return figure


def memory_over_time(report: Report, plt: Any) -> Any:
    """RSS of the processes, and all memory of the cgroup, page cache included."""
    figure, both = plt.subplots(2, 1, figsize=(6.4, 5), sharex=True, layout="constrained")
    palette = colours(list(report["runs"]))
    labels = {"rss_nbytes": "resident set, MB", "usage_nbytes": "cgroup, page cache included, MB"}
    for axes, (field, label) in zip(both, labels.items(), strict=True):
        column = report["fields"].index(field)
        for name, run in report["runs"].items():
            times = [moment[0] for moment in run["moments"]]
            values = [moment[column] / 1e6 for moment in run["moments"]]
            end = "" if run["outcome"] == "done" else f" ({run['outcome']})"
            axes.plot(times, values, DASHES.get(name, "-"), color=palette[name], linewidth=1.2, label=name + end)
        axes.set_yscale("log")
        axes.set_ylabel(label)
    both[0].set_title(of_what(report))
    both[0].legend(fontsize=8)
    both[1].set_xlabel("time, s")
    both[1].set_xlim(left=0)
    return figure


def scaling(report: Report, plt: Any) -> Any:
    """Time and memory against size, and planning time against the number of tensors: what was measured of them."""
    points = report["points"]
    panels = [("size", "wall_seconds", 1, "wall time, s"), ("size", "peak_rss_nbytes", 1e6, "peak resident set, MB")]
    panels = [panel for panel in panels if points.get("size")]
    panels += [("plan", "wall_seconds", 1, "time of streamconv plan, s")] if points.get("plan") else []
    if not panels:
        raise ValueError("only the part `null` was measured, which is one point")
    figure, every = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3), layout="constrained", squeeze=False)
    for axes, (part, field, unit, label) in zip(every[0], panels, strict=True):
        names = list(points[part][0]["summary"])
        for name, colour in colours(names if part == "size" else ["streamconv"]).items():
            key, where, by = (name, "source_nbytes", 1e9) if part == "size" else ("plan", "source_tensors", 1)
            seen = [point for point in points[part] if point["summary"][key].get(field) is not None]
            across, values = (
                [point[where] / by for point in seen],
                [point["summary"][key][field] / unit for point in seen],
            )
            axes.plot(across, values, "o-", color=colour, label=name, markersize=3.5, clip_on=False)
        axes.set_xlabel("source, GB" if part == "size" else "tensors in the source")
        axes.set_ylabel(label)
        axes.set_xlim(0, 1.05 * axes.dataLim.x1)
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    if points.get("size"):
        every[0][0].legend(fontsize=8)
    return figure


PICTURES: dict[str, Callable[[Report, Any], Any]] = {
    "compare": compare,
    "budget_curve": budget_curve,
    "memory_over_time": memory_over_time,
    "scaling": scaling,
}


def pyplot() -> Any:
    """Matplotlib without a screen; SystemExit with a word where it is missing."""
    try:
        library: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise SystemExit("pictures: matplotlib is not installed: pip install matplotlib") from None
    library.use("Agg")
    library.rcParams.update(STYLE)
    return importlib.import_module("matplotlib.pyplot")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw each report; 1 when one of them cannot be drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", help="JSON files of the scripts here")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="default: png")
    options = parser.parse_args(argv)
    plt = pyplot()
    options.out.mkdir(parents=True, exist_ok=True)
    code = 0
    for path in options.reports:
        report = json.loads(path.read_text())
        try:
            if report.get("kind") not in PICTURES:
                raise ValueError(f"a report of kind {report.get('kind')!r} has no picture")
            figure = PICTURES[report["kind"]](report, plt)
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            code = 1
            continue
        picture = options.out / f"{path.stem}.{options.format}"
        figure.savefig(picture, dpi=150, metadata={"Date": None} if options.format == "svg" else None)
        plt.close(figure)
        print(picture)
    return code


if __name__ == "__main__":
    sys.exit(main())
