"""The options of torch files with kept names."""

from __future__ import annotations

from streamconv.formats.names_kept.options import NamesKeptOptions

__all__ = ["TARGET_OPTIONS"]

TARGET_OPTIONS = NamesKeptOptions
