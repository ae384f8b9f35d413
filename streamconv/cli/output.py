"""Show a document where it is looked at: in colour on a terminal, plain in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from streamconv.report.blocks import Block, plain_text

__all__ = ["show"]


def show(blocks: Sequence[Block]) -> None:
    """Print a document on stdout."""
    if sys.stdout.isatty():
        from streamconv.report import terminal

        terminal.show(blocks, sys.stdout)
    else:
        print(plain_text(blocks))
