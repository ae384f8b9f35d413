"""``streamconv extract SRC NAME OUT``."""

from __future__ import annotations

from pathlib import Path

from streamconv.api import verbs
from streamconv.cli.command import Command, Invocation, Place
from streamconv.cli.output import print_log, print_result, progress_on

__all__ = ["command", "run"]


def command(help: str) -> Command:  # noqa: A002 - click's name for it
    """The command."""
    places = [
        Place("src", "checkpoint file or folder"),
        Place("name", "the tensor's name, as `inspect --tensors '*'` shows it", is_path=False),
        Place("out", "the file to write: NAME.npy or NAME.safetensors"),
    ]
    return Command("extract", help, places, run)


def run(call: Invocation) -> int:
    """Run the verb; returns the exit code."""
    output = call.output
    print_log(output)
    src, name, out = (str(call.places[place]) for place in ("src", "name", "out"))
    with progress_on(output, "extracting") as progress:
        found = verbs.extract(Path(src), name, Path(out), call.given, progress)
    print_result(found, output)
    return 0
