"""``zero_to_torch CHECKPOINT_DIR OUTPUT_DIR --dtype D``: the masters of a run as one model of any floating dtype."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from streamconv.cli.main import guarded
from streamconv.deepspeed_utils.zero_to_state_dict import arguments_of, run

__all__ = ["main"]

DTYPES = {"float32": "fp32", "fp32": "fp32", "float16": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16"}
"""DeepSpeed's words for dtypes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, argv)


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="zero_to_torch",
        description="Make one model of a DeepSpeed run's partitions, with the options of DeepSpeed's script of that "
        "name, inside a memory budget. `streamconv convert` has more.",
    )
    parser.add_argument("--dtype", required=True, choices=sorted(DTYPES), help="dtype of floating tensors")
    arguments_of(parser)
    arguments = parser.parse_args(words)
    return run(arguments, DTYPES[arguments.dtype])
