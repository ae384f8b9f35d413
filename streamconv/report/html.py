"""A report as one self-contained HTML page.

The names in a checkpoint are not trusted. The page has them as JSON inside a data block, where markup is not
interpreted, and its script makes text nodes of them. The page's policy lets only that one script run.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from streamconv.report.curves import chart

__all__ = ["html_report"]

_SCRIPTS = ("basics.js", "overview.js", "map.js", "chart.js", "tables.js", "report.js")
# A page is sent to others, so it contains only what it shows, without the report's training arguments.
_SHOWN = (
    *("schema", "path", "kind", "nbytes", "what", "evidence", "model", "dtypes", "parallel", "target", "optimizer"),
    *("files", "tensors", "statistics", "findings"),
)
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def html_report(report: Mapping[str, Any]) -> str:
    """The page for ``report``, the plain data that ``inspect --json`` prints.

    If a key is missing or None, its part of the page is left out. Numbers that are not finite become null.
    """
    style, script = _asset("report.css"), "\n".join(map(_asset, _SCRIPTS))
    shown = {key: report[key] for key in _SHOWN if key in report}
    data = {"report": shown, "chart": dataclasses.asdict(chart(report))}
    return Template(_asset("report.html")).substitute(
        style=style,
        style_hash=_policy_hash(style),
        script=script,
        script_hash=_policy_hash(script),
        data=_json(data),
    )


def _asset(name: str) -> str:
    return resources.files("streamconv.report").joinpath("page").joinpath(name).read_text(encoding="utf-8")


def _policy_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy identifies an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: object) -> str:
    """JSON in ASCII without any character that is special in HTML; U+2028, U+2029 and surrogates are escaped too."""
    return json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
