"""``deepspeed_to_megatron``: the options and defaults of bigscience's script of that name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from streamconv.api.options import options_of_verb
from streamconv.api.verbs import planned
from streamconv.bigscience.arguments import path
from streamconv.cli import convert
from streamconv.cli.main import guarded
from streamconv.cli.options import OutputOptions
from streamconv.cli.own_flags import name_own_flags
from streamconv.core.errors import StreamconvError
from streamconv.core.options import Given, all_options

__all__ = ["main"]

_OWN_FLAGS = {
    "--tp": "--target_tp",
    "--pp": "--target_pp",
    "--for-release": "--for_release",
    "--max-ram": "--max-ram",
    "--overwrite": "--overwrite",
}
"""What this command calls the options of ``streamconv convert`` that it has."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, argv)


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="deepspeed_to_megatron",
        description="Convert a Megatron-DeepSpeed checkpoint to Megatron-LM's legacy layout, with the options of "
        "the script of that name. `streamconv convert` has more.",
    )
    parser.add_argument("--input_folder", required=True, type=path, help="Input DeepSpeed checkpoint folder")
    parser.add_argument("--output_folder", required=True, type=path, help="Output Megatron checkpoint folder")
    parser.add_argument("--target_tp", type=int, default=1, help="Target TP degree (default: 1)")
    parser.add_argument("--target_pp", type=int, default=1, help="Target PP degree (default: 1)")
    parser.add_argument("--for_release", action="store_true", help="Reset the counters of consumed samples")
    parser.add_argument("--max-ram", default="auto", help="memory budget, as streamconv convert takes it")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in the output folder")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: tracebacks too")
    arguments = parser.parse_args(words)
    names = {"--target_tp": "TP 1", "--target_pp": "PP 1"}
    defaults = [size for name, size in names.items() if not any(word.startswith(name) for word in words)]
    if defaults:
        print(
            f"deepspeed_to_megatron: {' and '.join(defaults)}, this script's defaults "
            "(streamconv convert keeps the source's)",
            file=sys.stderr,
        )
    options = {
        "to": "megatron-legacy",
        "tp": arguments.target_tp,
        "pp": arguments.target_pp,
        "for_release": arguments.for_release,
        "max_ram": arguments.max_ram,
        "overwrite": arguments.overwrite,
        "verbose": arguments.verbose,
    }
    known = {**options_of_verb("convert"), **all_options([OutputOptions])}
    given = Given(options, spelled={name: f"--target_{name} {options[name]}" for name in ("tp", "pp")})
    given.check(known)
    try:
        return convert.execute(planned(Path(arguments.input_folder), given), Path(arguments.output_folder), given)
    except StreamconvError as error:
        name_own_flags(error, _OWN_FLAGS)
        raise
