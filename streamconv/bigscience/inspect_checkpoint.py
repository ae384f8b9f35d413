"""``inspect_checkpoint``: every value of a torch file, a line each, as bigscience's script of that name prints them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from streamconv.bigscience.arguments import path
from streamconv.cli.main import guarded

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, argv)


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="inspect_checkpoint",
        description="Print the shape of every tensor in a torch file, and every other value, with the lines of the "
        "script of that name. Metadata is read and no pickle is executed. `streamconv inspect` says more.",
    )
    parser.add_argument("file", metavar="FILE", type=path, help="a file that torch.save wrote")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="-vv: tracebacks too")
    arguments = parser.parse_args(words)
    from streamconv.bigscience.dump import dump_lines
    from streamconv.bigscience.python_text import one_line
    from streamconv.containers.pickles.machine import Global
    from streamconv.containers.torch_save.open import open_torch

    file = Path(arguments.file)
    opened = open_torch(file)
    print(f"loading checkpoint file: {one_line(arguments.file)}")
    has_sizes = Global("torch", "Size") in opened.globals
    for line in dump_lines(opened.state, arguments.file, file.stat().st_size, has_sizes=has_sizes):
        print(line)
    sys.stdout.flush()
    return 0
