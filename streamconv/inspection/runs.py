"""Describe a folder of several checkpoints, each of which is one by itself."""

from __future__ import annotations

from pathlib import Path

from streamconv.formats.registry import known_sources
from streamconv.inspection.report import Evidence, Finding, InspectionReport

__all__ = ["describe_runs"]


def describe_runs(report: InspectionReport, below: list[str]) -> list[str]:
    """Fill a report with the checkpoints below its folder, none of which is opened; returns their names."""
    report.what = f"a folder of {len(below)} checkpoint{'s' if len(below) > 1 else ''}"
    for name in below:
        claims = ((source.title, source.claims(Path(report.path) / name)) for source in known_sources())
        titles = [f"{title}: {words}" for title, words in claims if words]
        report.evidence.append(Evidence(name, "; ".join(titles)))
    report.findings.append(Finding("note", "give one of them", report.path))
    return below
