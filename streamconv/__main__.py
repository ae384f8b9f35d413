"""The front doors of the commands, and ``python -m streamconv``.

What is behind them takes a while to be imported. A signal meanwhile, or at the very end, ends in words too.
"""

from __future__ import annotations

import sys
from importlib import import_module

from streamconv.cli.ending import Interrupted, Terminated, end_at_once, ignore_signals, last_words, tell

__all__ = [
    "deepspeed_to_megatron",
    "inspect_checkpoint",
    "inspect_deepspeed_checkpoint",
    "main",
    "zero_to_fp32",
    "zero_to_torch",
]


def main() -> int:
    """``streamconv``; returns the exit code."""
    return _run("cli.main")


def deepspeed_to_megatron() -> int:
    """``deepspeed_to_megatron``; returns the exit code."""
    return _run("bigscience.deepspeed_to_megatron")


def inspect_checkpoint() -> int:
    """``inspect_checkpoint``; returns the exit code."""
    return _run("bigscience.inspect_checkpoint")


def inspect_deepspeed_checkpoint() -> int:
    """``inspect_deepspeed_checkpoint``; returns the exit code."""
    return _run("bigscience.inspect_deepspeed_checkpoint")


def zero_to_fp32() -> int:
    """``zero_to_fp32``; returns the exit code."""
    return _run("deepspeed_utils.zero_to_fp32")


def zero_to_torch() -> int:
    """``zero_to_torch``; returns the exit code."""
    return _run("deepspeed_utils.zero_to_torch")


def _run(module: str) -> int:
    end_at_once()
    try:
        code: int = import_module(f"streamconv.{module}").main()
    except (Interrupted, Terminated) as end:
        code, words = last_words(end)
        tell(words)
    ignore_signals()
    return code


if __name__ == "__main__":
    sys.exit(main())
