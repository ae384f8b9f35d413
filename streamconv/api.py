"""Open, plan and convert: the library that the command line is thin over."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import psutil

from streamconv.dtypes import DType, parse_dtype
from streamconv.engines import threads
from streamconv.engines.threads import EngineResult, EngineSettings
from streamconv.errors import MemoryBudgetError, UsageError
from streamconv.families.base import QkvLayout
from streamconv.files.output_io import OutputFileWriter
from streamconv.files.source_io import check_io_mode
from streamconv.formats.base import SourceOptions
from streamconv.memory import MIB, MemoryBudget, format_bytes, parse_budget, peak_rss_nbytes
from streamconv.planner import REPLICATED_POLICIES, ConvertOptions, make_plan
from streamconv.plans import Plan
from streamconv.publish import Staging, check_destination, clear_leftovers, staging
from streamconv.replicas import Drift, compare_replicas

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Choices", "Fit", "Report", "check_budget", "convert", "plan", "run_plan"]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread."""

_LARGEST_BLOCK = 4 * MIB
_SMALLEST_BLOCK = 64 << 10
_THREADS = 2
# Thread stacks, the directory and the pickles of the files that are written, allocator slack.
_MARGIN = 12 * MIB


class Choices(TypedDict, total=False):
    """What a conversion is asked to do; what is not said stays as the source has it.

    Attributes:
        to: ``megatron`` or ``megatron-legacy``.
        tp: tensor-parallel size.
        pp: pipeline-parallel size.
        pp_layers: layers of each pipeline stage.
        dtype: ``bf16``, ``fp16`` or ``fp32``.
        dialect: names of the legacy layout, ``2021`` or ``2023-09``.
        replicated: ``first``, ``mean`` or ``fail``.
        vocab_size: rows of the vocabulary without padding.
        for_release: reset the counters of consumed samples.
        keep_args: whether the training arguments go along.
        tag: which checkpoint of a DeepSpeed root.
        qkv_layout: ``interleaved`` or ``blocks``.
        num_heads: attention heads, where the checkpoint has no arguments.
        iteration: training iteration, where the checkpoint does not say it.
    """

    to: str
    tp: int | None
    pp: int | None
    pp_layers: tuple[int, ...] | None
    dtype: str | DType | None
    dialect: str | None
    replicated: str
    vocab_size: int | None
    for_release: bool
    keep_args: bool
    tag: str | None
    qkv_layout: str | None
    num_heads: int | None
    iteration: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion did. Times in seconds, sizes in bytes; ``peak_nbytes`` is the process's peak resident set."""

    plan: Plan
    destination: Path
    seconds: float
    read_nbytes: int
    write_nbytes: int
    peak_nbytes: int
    budget: MemoryBudget
    drifts: tuple[Drift, ...]
    records_checked: int
    records_in_part: int
    records_without_crc: int

    @property
    def nbytes_per_second(self) -> float:
        """Bytes written a second, start-up and sync included."""
        return self.write_nbytes / self.seconds if self.seconds else 0.0


def plan(src: str | Path, **choices: Unpack[Choices]) -> Plan:
    """Plan a conversion: metadata is read, nothing is written.

    Args:
        src: a Megatron-DeepSpeed checkpoint, its root or its tag folder.
        choices: see :class:`Choices`.

    Raises:
        StreamconvError: everything that can be refused, see :mod:`streamconv.errors`.
    """
    return make_plan(Path(src), _options(choices))


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    max_ram: str = "auto",
    io: str = "pread",
    overwrite: bool = False,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Report:
    """Convert a checkpoint, inside a memory budget.

    Args:
        src: as for :func:`plan`.
        dst: the folder for the result.
        max_ram: the budget: ``32G``, ``32GB``, ``50%`` or ``auto``.
        io: ``pread`` or ``mmap``.
        overwrite: replace a checkpoint that is there.
        progress: called with (bytes done, bytes in all), from any thread.
        choices: see :class:`Choices`.

    Raises:
        StreamconvError: see :mod:`streamconv.errors`. Before the first write for all that can be known before.
    """
    return run_plan(plan(src, **choices), dst, max_ram=max_ram, io=io, overwrite=overwrite, progress=progress)


def run_plan(
    work: Plan,
    dst: str | Path,
    *,
    max_ram: str = "auto",
    io: str = "pread",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Carry out a plan; see :func:`convert`."""
    check_io_mode(io)
    began = time.monotonic()
    fit = check_budget(work, max_ram)
    destination = Path(dst)
    entries = sorted({file.path.split("/", 1)[0] for file in work.files})
    clear_leftovers(destination)
    check_destination(work.source, destination, [*entries, *work.texts], overwrite=overwrite)
    drifts = compare_replicas(work.replicas, work.replicated_policy, io, fit.block)
    with staging(destination) as stage:
        stage.need(work.write_nbytes)
        result = _write(work, stage, EngineSettings(fit.block, fit.threads, io), fit.window, progress)
        stage.publish(work.texts)
    return Report(
        plan=work,
        destination=destination,
        seconds=time.monotonic() - began,
        read_nbytes=result.read_nbytes,
        write_nbytes=work.write_nbytes,
        peak_nbytes=peak_rss_nbytes(),
        budget=fit.budget,
        drifts=tuple(drifts),
        records_checked=result.source.checked,
        records_in_part=result.source.in_part,
        records_without_crc=result.source.without_crc,
    )


def _write(
    work: Plan, stage: Staging, settings: EngineSettings, window: int, progress: Progress | None
) -> EngineResult:
    total, done = work.tensor_nbytes, 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    with ExitStack() as opened:
        writers = [
            opened.enter_context(closing(OutputFileWriter(stage.path(file.path), file.layout.nbytes, window)))
            for file in work.files
        ]
        result = threads.run(work.jobs, writers, settings, count)
        for number, (file, writer) in enumerate(zip(work.files, writers, strict=True)):
            for offset, data in file.layout.frame(_crcs(result, number, file.layout.storages)):
                writer.write(offset, data)
            writer.finish()
    return result


def _crcs(result: EngineResult, number: int, storages: tuple[tuple[int, int], ...]) -> dict[int, int]:
    crcs = {}
    for key, (offset, nbytes) in enumerate(storages):
        crc = result.written.whole((number, offset), nbytes)
        if crc is None:
            raise RuntimeError(f"file {number}: storage {key} of {nbytes} bytes was not written completely")
        crcs[key] = crc
    return crcs


@dataclass(frozen=True, slots=True)
class Fit:
    """How a plan fits a budget: the floor in bytes, and the block, threads and write window that the budget allows."""

    budget: MemoryBudget
    floor_nbytes: int
    block: int
    threads: int
    window: int


def check_budget(work: Plan, max_ram: str = "auto") -> Fit:
    """Fit a plan into a budget.

    Args:
        work: the plan.
        max_ram: the budget: ``32G``, ``32GB``, ``50%`` or ``auto``.

    Raises:
        MemoryBudgetError: the budget is below the smallest that works in this process.
        UsageError: the budget cannot be read.
    """
    budget = parse_budget(max_ram)
    smallest = max(work.smallest_block, _SMALLEST_BLOCK)
    used = psutil.Process().memory_info().rss + _MARGIN
    floor = -(-(used + 2 * threads.buffer_nbytes(smallest, 1)) // MIB) * MIB
    if budget.nbytes < floor:
        raise MemoryBudgetError(
            f"{budget} is below the workable floor of {format_bytes(floor)} for this checkpoint",
            remedy=f"say --max-ram {floor // MIB}M or more",
        )
    # One half of what is left for buffers, a quarter for written data on its way to the disk.
    free = budget.nbytes - used
    count = _THREADS if threads.buffer_nbytes(smallest, _THREADS) <= free // 2 else 1
    block = min(max(_LARGEST_BLOCK, smallest), max(smallest, threads.block_within(free // 2, count)))
    together = min(len(work.files), 2 * work.target_layout.tp)
    window = min(16 * MIB, max(256 << 10, free // 4 // (2 * together)))
    return Fit(budget, floor, block, count, window)


def _options(choices: Choices) -> ConvertOptions:
    dtype = choices.get("dtype")
    qkv = choices.get("qkv_layout")
    replicated = choices.get("replicated", "first")
    for flag, value, allowed in (
        ("--replicated", replicated, REPLICATED_POLICIES),
        ("--qkv-layout", qkv, (None, *(layout.value for layout in QkvLayout))),
    ):
        if value not in allowed:
            names = ", ".join(name for name in allowed if name)
            raise UsageError(f"{flag} {value}: no such choice", remedy=f"choose one of {names}")
    for flag, number in (
        ("--tp", choices.get("tp")),
        ("--pp", choices.get("pp")),
        ("--num-heads", choices.get("num_heads")),
    ):
        if number is not None and number < 1:
            raise UsageError(f"{flag} {number}: must be at least 1")
    iteration = choices.get("iteration")
    if iteration is not None and iteration < 0:
        raise UsageError(f"--iteration {iteration}: must be at least 0")
    return ConvertOptions(
        to=choices.get("to", "megatron"),
        tp=choices.get("tp"),
        pp=choices.get("pp"),
        pp_layers=choices.get("pp_layers"),
        dtype=parse_dtype(dtype) if isinstance(dtype, str) else dtype,
        dialect=choices.get("dialect"),
        replicated=replicated,
        vocab_size=choices.get("vocab_size"),
        for_release=choices.get("for_release", False),
        keep_args=choices.get("keep_args", True),
        source=SourceOptions(
            tag=choices.get("tag"),
            pp_layers=choices.get("pp_layers"),
            qkv_layout=QkvLayout(qkv) if qkv else None,
            num_heads=choices.get("num_heads"),
            iteration=iteration,
        ),
    )
