"""An extracted tensor as text, and as plain data."""

from __future__ import annotations

from typing import Any

from streamconv.core.result import Face
from streamconv.execution.extraction import Extracted
from streamconv.memory.budget import format_bytes
from streamconv.report.notebook import lines_html

__all__ = ["extracted_dict", "extracted_text"]


def extracted_text(found: Extracted) -> str:
    """An extracted tensor as text."""
    shape = f"[{', '.join(map(str, found.shape))}]"
    return f"wrote   {found.path}: {found.name}, {found.dtype} {shape}, {format_bytes(found.nbytes)}"


def extracted_dict(found: Extracted) -> dict[str, Any]:
    """An extracted tensor as plain data; sizes in bytes."""
    return {
        "path": found.path,
        "source": found.source,
        "name": found.name,
        "dtype": found.dtype,
        "shape": list(found.shape),
        "nbytes": found.nbytes,
    }


def _line(found: Extracted) -> str:
    return f"{found.name}, {found.dtype}, {format_bytes(found.nbytes)}: {found.path}"


Extracted.face = Face(_line, extracted_text, extracted_dict, lambda found: lines_html(extracted_text(found)))
