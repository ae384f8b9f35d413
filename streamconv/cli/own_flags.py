"""Errors of a command with a script's own flags."""

from __future__ import annotations

from collections.abc import Mapping

from streamconv.core.errors import StreamconvError
from streamconv.core.shown import FLAG, with_flags

__all__ = ["name_own_flags"]


def name_own_flags(error: StreamconvError, own: Mapping[str, str]) -> None:
    """Put a command's flags for those of ``streamconv convert``; what it does not have is said to be there.

    Args:
        error: an error of a conversion, which is changed.
        own: what the command calls the flags that it has.
    """
    error.what = with_flags(error.what, own)
    if error.remedy is not None:
        named = sorted(set(FLAG.findall(error.remedy)) - own.keys())
        there = f" (`streamconv convert` has {', '.join(named)})" if named else ""
        error.remedy = f"{with_flags(error.remedy, own)}{there}"
