"""The paths that the three commands take."""

from __future__ import annotations

import argparse

from streamconv.core.kinds import InvalidValue, PathTo

__all__ = ["path"]


def path(text: str) -> str:
    """The checked path; raises what argparse makes an error of."""
    try:
        PathTo("PATH", folder=True).check(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: {error.what}") from None
    return text
