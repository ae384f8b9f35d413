"""Curves for both drawings: the root mean square of each parameter kind, layer by layer.

A kind is a parameter's name without its layer. Matrices and vectors (norms and biases) have separate panels, because
their sizes differ by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Chart", "Curve", "Panel", "Point", "chart"]

_LOG_SPAN = 30.0  # A panel whose largest value is this many times its smallest has a logarithmic axis.


@dataclass(frozen=True, slots=True)
class Point:
    """One parameter of one layer. ``rms`` is None if it is not finite; ``flags`` say what is unusual."""

    x: int
    rms: float | None
    flags: tuple[str, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Curve:
    """All layers of one parameter kind, in order."""

    parameter: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share a vertical axis."""

    title: str
    log: bool
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """The panels that have curves, and the unit of the horizontal axis."""

    by: Literal["layer", "tensor"]
    panels: tuple[Panel, ...]


def chart(report: Mapping[str, Any]) -> Chart:
    """The curves of a report: by layer, or by the order of its tensors when none belongs to a layer.

    Without statistics there are no panels.
    """
    rows: list[Mapping[str, Any]] = list(report.get("statistics") or ())
    layered = [row for row in rows if row.get("layer") is not None]
    by: Literal["layer", "tensor"] = "layer" if layered else "tensor"
    placed = [(row["layer"], _kind(row), row) for row in layered] or [
        (position, "tensors in their order", row) for position, row in enumerate(rows)
    ]
    panels = []
    for title, matrix in (("Weights", True), ("Norms and biases", False)):
        curves = _curves((x, kind, row) for x, kind, row in placed if (len(row.get("shape") or ()) > 1) is matrix)
        if curves:
            panels.append(Panel(title, _needs_log_axis(curves), curves))
    return Chart(by, tuple(panels))


def _kind(row: Mapping[str, Any]) -> str:
    if row.get("parameter"):
        return str(row["parameter"])
    return str(row.get("name") or "unnamed").replace(f".{row['layer']}.", ".*.", 1)


def _curves(placed: Iterable[tuple[int, str, Mapping[str, Any]]]) -> tuple[Curve, ...]:
    by_kind: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for x, kind, row in placed:
        by_kind.setdefault(kind, {}).setdefault(x, []).append(row)
    return tuple(Curve(kind, tuple(_point(x, by_kind[kind][x]) for x in sorted(by_kind[kind]))) for kind in by_kind)


def _point(x: int, rows: list[Mapping[str, Any]]) -> Point:
    """One point for all rows of the same place, such as the shards of a tensor, from the norm of all of them."""
    norms = [row.get("norm") for row in rows]
    numel = sum(row.get("numel") or 0 for row in rows)
    finite = [float(norm) for norm in norms if norm is not None and math.isfinite(norm)]
    whole = len(finite) == len(norms) and numel > 0
    flags = dict.fromkeys(flag for row in rows for flag in _flags(row))
    return Point(x, math.hypot(*finite) / math.sqrt(numel) if whole else None, tuple(flags), str(rows[0].get("name")))


def _flags(row: Mapping[str, Any]) -> list[str]:
    flags = [str(flag) for flag in row.get("flags") or ()]
    return flags or [f"{row[key]} {word}" for key, word in (("nan", "NaN"), ("inf", "Inf")) if row.get(key)]


def _needs_log_axis(curves: Iterable[Curve]) -> bool:
    values = [point.rms for curve in curves for point in curve.points if point.rms]
    return bool(values) and max(values) > _LOG_SPAN * min(values)
