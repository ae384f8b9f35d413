"""Refuse options that have no effect with the source or the target: a user who gives one expects an effect."""

from __future__ import annotations

from collections.abc import Iterator

from streamconv.core.errors import UsageError
from streamconv.formats.source import StoredModel
from streamconv.formats.target import TargetFormat
from streamconv.planning.request import ConvertOptions

__all__ = ["refuse_unused_options"]


def refuse_unused_options(model: StoredModel, target: TargetFormat, options: ConvertOptions) -> None:
    """Refuse the options that have no effect on this conversion.

    Raises:
        UsageError: such an option is given; the message says what it is for.
    """
    where = f"--to {target.name}"
    if options.to not in (target.name, "null"):
        where += f", which --to {options.to} is for this model"
    for said, flag, purpose in _for_whole(options) if target.is_sharded else _for_ranks(options):
        if said:
            raise UsageError(f"{flag} ({purpose}) has no meaning with {where}", remedy="leave it out")
    for said, flag, purpose in _for_some(options):
        if said and flag not in target.takes:
            raise UsageError(f"{flag} ({purpose}) has no meaning with {where}", remedy="leave it out")
    for said, flag, purpose in _for_megatron(options) if model.config is not None else ():
        if said:
            raise UsageError(f"{flag} ({purpose}) has no meaning for a Hugging Face source", remedy="leave it out")


def _for_whole(options: ConvertOptions) -> Iterator[tuple[bool, str, str]]:
    """Options of a target without ranks: (whether it is given, the flag, what it is for)."""
    yield options.vocab_padding is not None, "--vocab-padding", "whether a target that pads nothing keeps the padding"
    yield options.tokenizer is not None, "--tokenizer", "files that go along with a Hugging Face model"
    yield options.max_shard_nbytes is not None, "--max-shard-size", "the largest file of a Hugging Face model"


def _for_ranks(options: ConvertOptions) -> Iterator[tuple[bool, str, str]]:
    """Options of a target that is a training checkpoint."""
    yield options.layout.tp not in (None, 1), "--tp", "the ranks of a training checkpoint"
    yield options.layout.pp not in (None, 1), "--pp", "the stages of a training checkpoint"
    yield options.layout.pp_layers is not None, "--pp-layers", "the stages of a training checkpoint"
    yield options.for_release, "--for-release", "counters among the training arguments start anew"
    yield not options.keep_args, "--no-args", "the training arguments stay behind"
    yield options.source.iteration is not None, "--iteration", "the iteration that a training checkpoint is of"


def _for_some(options: ConvertOptions) -> Iterator[tuple[bool, str, str]]:
    """Options of some targets, which list them in ``takes``."""
    yield options.layout.vpp not in (None, 1), "--vpp", "virtual stages of Megatron-LM"
    yield options.core.container is not None, "--container", "the container of a Megatron-Core checkpoint"
    yield options.core.spec is not None, "--spec", "the layers that load a Megatron-Core checkpoint"
    yield options.core.release is not None, "--megatron-version", "the release that loads a Megatron-Core checkpoint"


def _for_megatron(options: ConvertOptions) -> Iterator[tuple[bool, str, str]]:
    """Options of a source that Megatron wrote."""
    source = options.source
    yield source.qkv_layout is not None, "--qkv-layout", "the order of rows in Megatron's query_key_value"
    yield source.glu_order is not None, "--glu-order", "the order of halves in Megatron's dense_h_to_4h"
    yield source.tag is not None, "--tag", "which checkpoint below a root is meant"
