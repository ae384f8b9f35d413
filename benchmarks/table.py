"""Write the tables of reports into a document, between two marker comments.

    python benchmarks/table.py docs/benchmarks.md results/compare-tp1.json results/budget.json

Reports of compare.py, budget_curve.py and zero.py become tables, in the order given. What stands between the markers is
replaced; a document that lacks one of them is left alone, and the tables are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from options import headline, mebibytes, megabytes

BEGIN, END = "<!-- short set begin -->", "<!-- short set end -->"
Report = dict[str, Any]


def compare(report: Report) -> Iterator[str]:
    """Contenders beside each other."""
    job, summaries = report["job"], report["summary"]
    limit = f", memory cgroup of {mebibytes(job['limit_nbytes'])}" if job["limit_nbytes"] else ""
    yield from about(report, f"`--max-ram {job['max_ram']}`{limit}")
    yield "| contender | wall s, median (min to max) | against `cp -r` | MB/s | peak RSS | cgroup peak |"
    yield "|---|---|---|---|---|---|"
    base = summaries.get("cp", {}).get("wall_seconds")
    for name, summary in summaries.items():
        if summary["outcome"] != "done":
            yield f"| {name} | {summary['outcome']} | | | | |"
            continue
        ratio = f"{summary['wall_seconds'] / base:.2f}" if base else ""
        yield f"| {name} | {times(summary)} | {ratio} | {speed(report, summary)} | {memory(summary)} |"


def budget_curve(report: Report) -> Iterator[str]:
    """Budgets below each other."""
    yield from about(report, "each budget in a memory cgroup of that size")
    yield "| budget | command | wall s, median (min to max) | MB/s | peak RSS | cgroup peak |"
    yield "|---|---|---|---|---|---|"
    for key, summary in report["summary"].items():
        name, _, budget = key.partition(" ")
        if summary["outcome"] != "done":
            yield f"| {budget} | {name} | {summary['outcome']} | | | |"
            continue
        yield f"| {budget} | {name} | {times(summary)} | {speed(report, summary)} | {memory(summary)} |"
    least, floor = report["search"]["smallest_nbytes"], report["search"]["named_floor_nbytes"]
    if least is not None:
        said = f" (streamconv names {mebibytes(floor)} as its floor)" if floor else ""
        yield from ("", f"The smallest cgroup in which it finishes: {mebibytes(least)}{said}.")


def zero(report: Report) -> Iterator[str]:
    """Both ways out of ZeRO folders, a table for each stage."""
    job = report["job"]
    for number, (stage, part) in enumerate(report["stages"].items()):
        written = max(part["output_nbytes"].values()) / 1e9
        source = f"ZeRO-{stage}, {part['source_nbytes'] / 1e9:.1f} GB, to {written:.1f} GB of fp32 safetensors"
        yield from [""] * bool(number)
        yield f"{source}, cache {job['cache']}, {job['rounds']} rounds, deepspeed {job['deepspeed']}:"
        yield from ("", "| contender | memory cgroup | wall s, median (min to max) | peak RSS | cgroup peak |")
        yield "|---|---|---|---|---|"
        for key, summary in part["summary"].items():
            name, _, limit = key.partition(" ")
            start = f"| {name} | {limit or 'no limit'} |"
            done = summary["outcome"] == "done"
            yield f"{start} {times(summary)} | {memory(summary)} |" if done else f"{start} {summary['outcome']} | | |"
        said = {True: "The outputs are equal, bit by bit.", False: "The outputs DIFFER.", None: "Not compared."}
        yield from ("", said[part["outputs_same"]])


def about(report: Report, how: str) -> Iterator[str]:
    """What was measured, above a table."""
    job = report["job"]
    gigabytes = job["source_nbytes"] / 1e9
    yield f"{gigabytes:.1f} GB to TP {job['tp']} PP {job['pp']}, {how}, cache {job['cache']}, {job['rounds']} rounds:"
    yield ""


def times(summary: dict[str, Any]) -> str:
    """Median and range."""
    least, most = summary["wall_seconds_range"]
    return f"{summary['wall_seconds']:.1f} ({least:.1f} to {most:.1f})"


def speed(report: Report, summary: dict[str, Any]) -> str:
    """Bytes of the source a second, in MB."""
    return f"{report['job']['source_nbytes'] / summary['wall_seconds'] / 1e6:.0f}"


def memory(summary: dict[str, Any]) -> str:
    """Both peaks, two cells."""
    return f"{megabytes(summary['peak_rss_nbytes'])} | {megabytes(summary['cgroup_peak_nbytes'])}"


TABLES: dict[str, Callable[[Report], Iterator[str]]] = {"compare": compare, "budget_curve": budget_curve, "zero": zero}


def text_of(reports: Sequence[Report]) -> str:
    """All tables, below the machine they were measured on."""
    facts = reports[0]["machine"]
    versions = f"Python {facts['python']}, torch {facts['torch']}, streamconv {facts['streamconv']} ({facts['commit']})"
    lines = [f"{facts['date'][:10]}, {headline(facts)}, Linux {facts['kernel']}, {versions}."]
    for report in reports:
        lines += ["", *TABLES[report["kind"]](report)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the document; 1 when it lacks the markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path, help="Markdown file with the two markers")
    parser.add_argument("reports", type=Path, nargs="+", help="JSON files of these scripts")
    options = parser.parse_args(argv)
    reports = [json.loads(path.read_text()) for path in options.reports]
    unknown = [path for path, report in zip(options.reports, reports, strict=True) if report.get("kind") not in TABLES]
    if unknown:
        parser.error(f"{unknown[0]} is no report that has a table")
    tables, text = text_of(reports), options.document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(tables, f"\n{options.document} is left as it is: it lacks {BEGIN} or {END}", sep="\n")
        return 1
    options.document.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
    print(f"{options.document}: {len(reports)} tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
