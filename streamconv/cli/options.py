"""Options that several verbs share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from streamconv.execution.settings import DEFAULT_ENGINE

if TYPE_CHECKING:
    from streamconv.api import Choices
    from streamconv.execution.fit import RunChoices
    from streamconv.formats.source import SourceOptions

__all__ = [
    "DEFAULT_TARGET",
    "add_checkpoint_options",
    "add_comparison_options",
    "add_conversion_options",
    "add_look_options",
    "add_run_options",
    "add_source_options",
    "add_target_options",
    "choices_of",
    "run_choices_of",
    "source_options_of",
]


DEFAULT_TARGET = "megatron"


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 10,11,11") from None


def add_conversion_options(parser: argparse.ArgumentParser) -> None:
    """The source, everything that decides what is written, and how it runs; but not where it goes."""
    parser.add_argument("src", metavar="SRC", help="checkpoint: a root (with `latest` or a tracker) or a tag's folder")
    add_target_options(parser)
    add_source_options(parser)
    add_run_options(parser)


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """What is wanted of the result."""
    target = parser.add_argument_group("target")
    target.add_argument(
        "--to",
        default=DEFAULT_TARGET,
        help="megatron (the newest Megatron layout that can run the model), megatron-core, megatron-legacy, deepspeed, "
        "huggingface, gpt-neox, or null: convert to megatron, discard the bytes",
    )
    target.add_argument("--tp", type=int, metavar="N", help="tensor-parallel size (default: the source's)")
    target.add_argument(
        "--pp", type=int, metavar="N", help="pipeline-parallel size (default: the source's, stages included)"
    )
    target.add_argument(
        "--pp-layers",
        type=_layers,
        metavar="N,N,..",
        help="layers of each stage, also where the source does not record them",
    )
    target.add_argument(
        "--dtype", metavar="TYPE", help="cast floating tensors to bf16, fp16 or fp32 (default: as stored)"
    )
    target.add_argument(
        "--config",
        metavar="FILE",
        help="JSON: what the source does not say, as entries of config.json, or training arguments for a target that "
        "has them",
    )
    target.add_argument("--for-release", action="store_true", help="reset the counters of consumed samples in args")
    target.add_argument("--no-args", action="store_true", help="leave the training arguments out of the result")
    _add_megatron_options(parser)
    _add_other_targets_options(parser)


def _add_megatron_options(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("target Megatron-LM (megatron-core, megatron-legacy)")
    target.add_argument(
        "--vpp",
        type=int,
        metavar="N",
        help="of megatron-core (torch) and megatron-legacy: virtual stages on each stage",
    )
    target.add_argument(
        "--container", metavar="NAME", help="of megatron-core: torch_dist (default; its reader reshards) or torch"
    )
    target.add_argument(
        "--spec",
        metavar="NAME",
        help="of megatron-core: the layers that load it, te (Transformer Engine, default) or local",
    )
    target.add_argument(
        "--megatron-version",
        metavar="0.N",
        help="of megatron-core: the release that is to load it, refused if it cannot (default: any that can)",
    )
    target.add_argument(
        "--dialect",
        metavar="NAME",
        help="of megatron-legacy: names of 2021 (default, loads everywhere) or 2023-09",
    )


def _add_other_targets_options(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("target deepspeed, gpt-neox or huggingface")
    target.add_argument(
        "--fork",
        dest="dialect",
        metavar="NAME",
        help="of deepspeed: the code that is to load the result, bigscience, deepspeedai or deepspeedai-2024-11 "
        "(before 676a482c), which sets file numbers and row orders (default: the source's, or one that runs the model)"
        "; of gpt-neox: gpt-neox (default) or gpt-neox-2024-08, which sets the names of the MLP",
    )
    target.add_argument(
        "--vocab-padding",
        metavar="POLICY",
        help="of huggingface: strip (default, but for BLOOM) or keep the padding of the vocabulary",
    )
    target.add_argument("--max-shard-size", metavar="SIZE", help="of huggingface: the largest file (default: 5GB)")
    target.add_argument(
        "--tokenizer", metavar="DIR", help="of huggingface: copy the tokenizer's files from there, byte for byte"
    )


def add_checkpoint_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What a checkpoint may not say itself, whatever is done with it."""
    source = parser.add_argument_group("source, where it does not say it itself")
    source.add_argument("--tag", help="which checkpoint of a root (default: what `latest` or the tracker names)")
    source.add_argument("--qkv-layout", metavar="ORDER", help="rows of query_key_value: interleaved or blocks")
    source.add_argument("--glu-order", metavar="ORDER", help="halves of a gated dense_h_to_4h: gate-up or up-gate")
    source.add_argument("--num-heads", type=int, metavar="N", help="attention heads")
    return source


def add_comparison_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The same, and how many rows of the vocabulary count."""
    source = add_checkpoint_options(parser)
    source.add_argument("--vocab-size", type=int, metavar="N", help="true vocabulary size, without padding")
    return source


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """What the source of a conversion may not say itself."""
    source = add_comparison_options(parser)
    source.add_argument("--iteration", type=int, metavar="N", help="training iteration")
    source.add_argument(
        "--replicated",
        default="first",
        metavar="POLICY",
        help="which copy of a replicated parameter counts if ranks differ: first (default), mean, or fail",
    )


def add_look_options(parser: argparse.ArgumentParser) -> None:
    """How values are looked at."""
    how = parser.add_argument_group("how")
    _add_budget(how)
    how.add_argument("--json", action="store_true", help="print the result as JSON")
    how.add_argument("-v", "--verbose", action="count", default=0, help="twice: tracebacks too")


def _add_budget(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--max-ram",
        default="auto",
        metavar="SIZE",
        help="memory budget: 32G or 32GiB (2^30 units), 32GB (10^9), 50%%, or auto: half of what is free (default)",
    )
    how.add_argument(
        "--io",
        default="direct",
        metavar="MODE",
        help="direct (default): past the page cache, where the file system can; pread: through it; mmap: read by maps",
    )
    how.add_argument("--jobs", type=int, metavar="N", help="threads (default: as many as help within the budget)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """How it runs, which changes nothing of what is written."""
    how = parser.add_argument_group("how")
    _add_budget(how)
    how.add_argument("--block-size", metavar="SIZE", help="bytes that each thread moves at a time (default: up to 16M)")
    how.add_argument(
        "--engine",
        default=DEFAULT_ENGINE,
        metavar="NAME",
        help="threads (default), or serial: the reference engine, one tile after another, to hold the other against",
    )
    how.add_argument("--json", action="store_true", help="print the result as JSON")
    how.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: tracebacks too")


def choices_of(arguments: argparse.Namespace) -> Choices:
    """The arguments as the library takes them."""
    return {
        "to": arguments.to,
        "tp": arguments.tp,
        "pp": arguments.pp,
        "pp_layers": arguments.pp_layers,
        "vpp": arguments.vpp,
        "container": arguments.container,
        "spec": arguments.spec,
        "megatron_version": arguments.megatron_version,
        "dtype": arguments.dtype,
        "dialect": arguments.dialect,
        "replicated": arguments.replicated,
        "vocab_size": arguments.vocab_size,
        "vocab_padding": arguments.vocab_padding,
        "max_shard_size": arguments.max_shard_size,
        "config": arguments.config,
        "tokenizer": arguments.tokenizer,
        "for_release": arguments.for_release,
        "keep_args": not arguments.no_args,
        "tag": arguments.tag,
        "qkv_layout": arguments.qkv_layout,
        "glu_order": arguments.glu_order,
        "num_heads": arguments.num_heads,
        "iteration": arguments.iteration,
    }


def source_options_of(arguments: argparse.Namespace) -> SourceOptions:
    """What the user says of a checkpoint that is looked at."""
    from streamconv.formats.source import SourceOptions

    return SourceOptions.said(
        tag=arguments.tag,
        qkv_layout=arguments.qkv_layout,
        glu_order=arguments.glu_order,
        num_heads=arguments.num_heads,
    )


def run_choices_of(arguments: argparse.Namespace) -> RunChoices:
    """How to run it, as the library takes it."""
    return {
        "max_ram": arguments.max_ram,
        "io": arguments.io,
        "jobs": arguments.jobs,
        "block_size": arguments.block_size,
        "engine": arguments.engine,
    }
