"""Open, plan, convert and stream: the library that the command line is thin over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from streamconv.containers.json_file import read_config
from streamconv.core.dtypes import DType, parse_dtype
from streamconv.core.errors import UsageError
from streamconv.execution.fit import RunChoices
from streamconv.formats.source import SourceOptions
from streamconv.formats.target import CoreChoices
from streamconv.memory.budget import parse_size
from streamconv.planning.plan import Plan
from streamconv.planning.planner import REPLICATED_POLICIES, make_plan
from streamconv.planning.request import ConvertOptions, WantedLayout
from streamconv.planning.vocabulary import PADDING_POLICIES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from streamconv.execution.run import Progress, Report
    from streamconv.execution.stream import StreamedTensor

__all__ = ["Choices", "ConvertChoices", "convert", "plan", "stream"]


class Choices(TypedDict, total=False):
    """What a conversion is asked to do; what is not said stays as the source has it.

    Attributes:
        to: ``megatron``, ``megatron-core``, ``megatron-legacy``, ``deepspeed``, ``gpt-neox`` or ``huggingface``.
        tp: tensor-parallel size.
        pp: pipeline-parallel size.
        pp_layers: layers of each pipeline stage.
        vpp: virtual stages on each pipeline stage.
        container: of Megatron-Core, ``torch_dist`` or ``torch``.
        spec: whose names the norms of Megatron-Core have, ``te`` or ``local``.
        megatron_version: the release of Megatron-LM that is to load the result, as ``0.16``.
        dtype: ``bf16``, ``fp16`` or ``fp32``.
        dialect: names of the legacy layout, ``2021`` or ``2023-09``; of ``deepspeed`` the fork that is to load it.
        replicated: ``first``, ``mean`` or ``fail``.
        vocab_size: rows of the vocabulary without padding.
        vocab_padding: ``strip`` or ``keep``, for a target that pads nothing.
        max_shard_size: the largest file of a Hugging Face model, as ``5GB``.
        config: entries of a configuration, or the path of a JSON file with them: of ``config.json``, or training
            arguments for a target that has them. They say what the source does not.
        tokenizer: a folder whose tokenizer files go along.
        for_release: reset the counters of consumed samples.
        keep_args: whether the training arguments go along.
        tag: which checkpoint of a root: the name of its folder.
        qkv_layout: ``interleaved`` or ``blocks``.
        glu_order: ``gate-up`` or ``up-gate``.
        num_heads: attention heads, where the checkpoint has no arguments.
        iteration: training iteration, where the checkpoint does not say it.
    """

    to: str
    tp: int | None
    pp: int | None
    pp_layers: tuple[int, ...] | None
    vpp: int | None
    container: str | None
    spec: str | None
    megatron_version: str | None
    dtype: str | DType | None
    dialect: str | None
    replicated: str
    vocab_size: int | None
    vocab_padding: str | None
    max_shard_size: str | None
    config: str | Path | Mapping[str, Any] | None
    tokenizer: str | Path | None
    for_release: bool
    keep_args: bool
    tag: str | None
    qkv_layout: str | None
    glu_order: str | None
    num_heads: int | None
    iteration: int | None


class ConvertChoices(Choices, RunChoices, total=False):
    """What a conversion is asked to do, and how it runs."""


def plan(src: str | Path, **choices: Unpack[Choices]) -> Plan:
    """Plan a conversion: nothing is written, and metadata is read; for Hugging Face also biases that may be zero.

    Args:
        src: a checkpoint of Megatron-DeepSpeed, GPT-NeoX or Megatron-LM (legacy or Megatron-Core), its root or its
            tag's or iteration's folder, or the folder of a Hugging Face model.
        choices: see :class:`Choices`.

    Raises:
        StreamconvError: everything that can be refused, see :mod:`streamconv.core.errors`.
    """
    return make_plan(Path(src), _options(choices))


def convert(
    src: str | Path,
    dst: str | Path | None,
    *,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    **choices: Unpack[ConvertChoices],
) -> Report:
    """Convert a checkpoint, inside a memory budget. If a run ended early, the same call goes on where it was.

    Args:
        src: as for :func:`plan`.
        dst: the folder for the result; None runs the whole conversion and discards its bytes, for measuring.
        overwrite: replace a checkpoint that is there.
        restart: discard what a run that ended early left.
        progress: called with (bytes done, bytes in all), from any thread.
        choices: see :class:`Choices` and :class:`RunChoices`.

    Raises:
        StreamconvError: see :mod:`streamconv.core.errors`. Before the first write for all that can be known before.
    """
    from streamconv.execution.run import run_plan

    how, what = _split(choices)
    return run_plan(plan(src, **what), dst, overwrite=overwrite, restart=restart, progress=progress, **how)


def stream(
    src: str | Path, *, copy: bool = False, framework: str = "pt", **choices: Unpack[ConvertChoices]
) -> Iterator[StreamedTensor]:
    """The tensors that :func:`convert` would write, one layer at a time, ready to load into a model.

    The shards of one parameter come one after the other, for each rank. A tensor shares memory with a pool that is
    used again: it is valid until the next step, unless ``copy``. The budget covers the process as it is now, the pool
    and one tensor; what the caller keeps comes on top. A record's CRC-32 is checked when its last byte has been read:
    before its tensor is yielded, or, of a tensor that is split over ranks, before its last shard.

    Args:
        src: as for :func:`plan`.
        copy: yield tensors of their own, that stay valid.
        framework: ``pt`` for torch tensors, ``np`` for numpy arrays (bfloat16 by ml_dtypes).
        choices: see :class:`Choices` and :class:`RunChoices`.

    Raises:
        MemoryBudgetError: the budget is below the largest tensor and the buffers; the message says what works.
        StreamconvError: whatever :func:`convert` refuses, when this is called; damage where it is met.
    """
    from streamconv.execution.stream import stream_plan

    how, what = _split(choices)
    return stream_plan(plan(src, **what), copy=copy, framework=framework, how=how)


def _split(choices: ConvertChoices) -> tuple[RunChoices, Choices]:
    """How it runs, and what it is asked to do."""
    how: RunChoices = {}
    what: Choices = {}
    for name, value in choices.items():
        (how if name in RunChoices.__annotations__ else what)[name] = value  # type: ignore[literal-required]
    return how, what


def _options(choices: Choices) -> ConvertOptions:
    unknown = sorted(set(choices) - set(Choices.__annotations__))
    if unknown:
        raise UsageError(f"{unknown[0]}: no such choice", remedy=f"choose among {', '.join(Choices.__annotations__)}")
    dtype = choices.get("dtype")
    replicated = choices.get("replicated", "first")
    if replicated not in REPLICATED_POLICIES:
        names = ", ".join(REPLICATED_POLICIES)
        raise UsageError(f"--replicated {replicated}: no such choice", remedy=f"choose one of {names}")
    for flag, number in (("--tp", choices.get("tp")), ("--pp", choices.get("pp")), ("--vpp", choices.get("vpp"))):
        if number is not None and number < 1:
            raise UsageError(f"{flag} {number}: must be at least 1")
    padding = choices.get("vocab_padding")
    if padding not in (None, *PADDING_POLICIES):
        names = ", ".join(PADDING_POLICIES)
        raise UsageError(f"--vocab-padding {padding}: no such choice", remedy=f"choose one of {names}")
    shard, tokenizer = choices.get("max_shard_size"), choices.get("tokenizer")
    return ConvertOptions(
        to=choices.get("to", "megatron"),
        layout=WantedLayout(choices.get("tp"), choices.get("pp"), choices.get("pp_layers"), choices.get("vpp")),
        core=CoreChoices(choices.get("container"), choices.get("spec"), choices.get("megatron_version")),
        dtype=parse_dtype(dtype) if isinstance(dtype, str) else dtype,
        dialect=choices.get("dialect"),
        replicated=replicated,
        vocab_size=choices.get("vocab_size"),
        vocab_padding=padding,
        max_shard_nbytes=None if shard is None else parse_size(shard, "--max-shard-size"),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        for_release=choices.get("for_release", False),
        keep_args=choices.get("keep_args", True),
        source=SourceOptions.said(
            tag=choices.get("tag"),
            pp_layers=choices.get("pp_layers"),
            qkv_layout=choices.get("qkv_layout"),
            glu_order=choices.get("glu_order"),
            num_heads=choices.get("num_heads"),
            iteration=choices.get("iteration"),
            config=_entries(choices.get("config")),
        ),
    )


def _entries(config: object) -> Mapping[str, Any] | None:
    """The entries of a configuration that is a path, or a mapping already."""
    if isinstance(config, str | Path):
        return read_config(Path(config))
    if config is None or (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
        return config
    raise UsageError(
        f"config is {repr(config)[:40]}, not entries by their names",
        remedy="give a mapping of names to values, or the path of a JSON file",
    )
