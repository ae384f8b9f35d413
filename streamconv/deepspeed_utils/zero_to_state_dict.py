"""``zero_to_fp32`` and ``zero_to_torch``: the options and defaults of DeepSpeed's scripts of these names.

Sources: ``deepspeed/utils/zero_to_fp32.py``, ``deepspeed/utils/zero_to_torch.py`` (0.19.8).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamconv.api.options import options_of_verb
from streamconv.api.verbs import planned
from streamconv.cli import convert
from streamconv.cli.options import OutputOptions
from streamconv.cli.own_flags import name_own_flags
from streamconv.core.errors import StreamconvError
from streamconv.core.options import Given, all_options
from streamconv.formats.named import NamedModel
from streamconv.formats.registry import open_named
from streamconv.formats.wrappers import without_wrappers

__all__ = ["arguments_of", "run"]

_OWN_FLAGS = {"--max-shard-size": "--max_shard_size", **{flag: flag for flag in ("--tag", "--max-ram", "--overwrite")}}
"""What these commands call the options of ``streamconv convert`` that they have."""


def arguments_of(parser: argparse.ArgumentParser) -> None:
    """Add the options that both scripts have, and those of streamconv."""
    parser.add_argument("checkpoint_dir", help="path of the checkpoint folder: path/checkpoint-12")
    parser.add_argument("output_dir", help="folder for the converted files")
    parser.add_argument("--max_shard_size", default="5GB", help="the largest file (default: 5GB)")
    parser.add_argument("--safe_serialization", action="store_true", help="write safetensors instead of torch files")
    parser.add_argument("-t", "--tag", help="which checkpoint of the folder: global_step1 (default: that of `latest`)")
    parser.add_argument("--exclude_frozen_parameters", action="store_true", help="leave frozen parameters out")
    parser.add_argument("-d", "--debug", action="store_true", help="say more, tracebacks too")
    parser.add_argument("--max-ram", default="auto", help="memory budget, as streamconv convert takes it")
    parser.add_argument("--overwrite", action="store_true", help="replace a model in the output folder")


def run(arguments: argparse.Namespace, dtype: str) -> int:
    """Convert the masters of a run; returns the exit code."""
    source = Path(arguments.checkpoint_dir)
    options: dict[str, Any] = {
        "to": "safetensors" if arguments.safe_serialization else "pytorch-bin",
        "weights": "master",
        "dtype": dtype,
        "max_shard_size": arguments.max_shard_size,
        "max_ram": arguments.max_ram,
        "overwrite": arguments.overwrite,
        "verbose": 2 if arguments.debug else 0,
        **({"tag": arguments.tag} if arguments.tag else {}),
    }
    known = {**options_of_verb("convert"), **all_options([OutputOptions])}
    try:
        if arguments.exclude_frozen_parameters:
            options["skip"] = _frozen(source, _given(options))
        given = _given(options)
        given.check(known)
        plan = planned(source, given)
        # As with DeepSpeed's script, the output may be a folder in the checkpoint's, beside that of the tag.
        return convert.execute(replace(plan, root=plan.source), Path(arguments.output_dir), given)
    except StreamconvError as error:
        name_own_flags(error, _OWN_FLAGS)
        raise


def _given(options: dict[str, Any]) -> Given:
    """The options as they are spelled on this command's line."""
    words = {"max_shard_size": "--max_shard_size", "max_ram": "--max-ram", "tag": "--tag"}
    return Given(options, spelled={name: f"{flag} {options[name]}" for name, flag in words.items() if name in options})


def _frozen(source: Path, given: Given) -> Sequence[str]:
    """Patterns that match the frozen parameters of a run."""
    model = open_named(source, given).model
    names = sorted(without_wrappers(model).frozen) if isinstance(model, NamedModel) else []
    return ["".join(f"[{sign}]" if sign in "*?[" else sign for sign in name) for name in names]
