"""The options of adapters."""

from __future__ import annotations

from streamconv.formats.options import SourceOptions

__all__ = ["SOURCE_OPTIONS"]

SOURCE_OPTIONS = SourceOptions
