"""``zero_to_fp32 CHECKPOINT_DIR OUTPUT_DIR``: the fp32 masters of a run as one model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from streamconv.cli.main import guarded
from streamconv.deepspeed_utils.zero_to_state_dict import arguments_of, run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, argv)


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="zero_to_fp32",
        description="Make one fp32 model of a DeepSpeed run's partitions, with the options of DeepSpeed's script of "
        "that name, inside a memory budget. `streamconv convert` has more.",
    )
    arguments_of(parser)
    return run(parser.parse_args(words), "fp32")
