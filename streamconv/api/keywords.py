"""The verbs that convert, in Python: paths first, every option a keyword, and errors that speak of keywords."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import streamconv
from streamconv.api import verbs
from streamconv.api.calling import AnyPath, Progress, given_by, in_words_of_python, path_of, shown, verb

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from streamconv.api import typed

__all__ = ["bench", "convert", "families", "plan", "stream"]


@verb
def plan(src: AnyPath, **options: Unpack[typed.PlanKeywords]) -> streamconv.Plan:
    """Plan a conversion: nothing is written, and metadata is read; for Hugging Face also biases that may be zero.

    >>> streamconv.plan("checkpoints/bloom", tp=1, pp=3)
    <Plan: BLOOM, TP 2 x PP 2 (2 layers a stage) to megatron-legacy, TP 1 x PP 3 (stages of 2,1,1 layers): 3 files, ...>

    Args:
        src: a checkpoint of Megatron-DeepSpeed, GPT-NeoX or Megatron-LM (legacy or Megatron-Core), its root or its
            tag's or iteration's folder, or the folder of a Hugging Face model.
        options: see below.

    Raises:
        StreamconvError: everything that can be refused, see :mod:`streamconv.core.errors`.
    """
    return verbs.plan(path_of("src", src), given_by("plan", options))


@verb
def convert(
    src: AnyPath, dst: AnyPath | None, *, progress: Progress = None, **options: Unpack[typed.ConvertKeywords]
) -> streamconv.ConversionReport:
    """Convert a checkpoint, inside a memory budget. If a run ended early, the same call goes on where it was.

    >>> streamconv.convert("checkpoints/bloom", "out", tp=1, pp=3, max_ram="1G")
    <ConversionReport: megatron-legacy, ... in ... s, peak ...: out>

    Args:
        src: as for :func:`plan`.
        dst: the folder for the result; None runs the whole conversion and discards its bytes, for measuring.
        progress: called with (bytes done, bytes in all), from any thread; what it raises ends the run. True draws a bar
            on stderr.
        options: see below.

    Raises:
        StreamconvError: see :mod:`streamconv.core.errors`. Before the first write for all that can be known before.
    """
    given, source = given_by("convert", options), path_of("src", src)
    destination = None if dst is None else path_of("dst", dst)
    with shown(progress, "converting") as show:
        return verbs.convert(source, destination, given, show)


def stream(src: AnyPath, **options: Unpack[typed.StreamKeywords]) -> Iterator[streamconv.StreamedTensor]:
    """The tensors that :func:`convert` would write, one layer at a time, ready to load into a model.

    The shards of one parameter come one after the other, for each rank. A tensor shares memory with a pool that is
    used again: it is valid until the next step, unless ``copy``. The budget covers the process as it is now, the pool
    and one tensor; what the caller keeps comes on top. A record's CRC-32 is checked when its last byte has been read:
    before its tensor is yielded, or, of a tensor that is split over ranks, before its last shard.

    >>> next(streamconv.stream("checkpoints/bloom", tp=1, pp=3, max_ram="4G"))
    StreamedTensor(tp=0, pp=0, 'language_model.embedding.word_embeddings.weight', shape=(104, 32), dtype=torch.float32)

    Args:
        src: as for :func:`plan`.
        options: see below.

    Raises:
        MemoryBudgetError: the budget is below the largest tensor and the buffers; the message says what works.
        StreamconvError: whatever :func:`convert` refuses, when this is called; damage where it is met.
    """
    with in_words_of_python():
        tensors = verbs.stream(path_of("src", src), given_by("stream", options))
    return _streamed(tensors)


def _streamed(tensors: Iterator[streamconv.StreamedTensor]) -> Iterator[streamconv.StreamedTensor]:
    with in_words_of_python():
        yield from tensors


stream = verb(stream)


@verb
def bench(folder: AnyPath, src: AnyPath | None = None, **options: Unpack[typed.BenchKeywords]) -> streamconv.DiskReport:
    """How fast a folder's disk is, and how long a conversion would take on it.

    >>> streamconv.bench(".", src="checkpoints/bloom", tp=1, size="16M")
    <DiskReport: read .../s, write .../s, copy .../s: .>

    Args:
        folder: a folder on the disk that the result would go to.
        src: the checkpoint whose conversion is to be predicted.
        options: see below.

    Raises:
        DestinationError: there is no such folder.
        DiskSpaceError, StorageError: there is no room for two files of ``size``, or the system refused.
    """
    given, place = given_by("bench", options), path_of("folder", folder)
    return verbs.bench(place, None if src is None else path_of("src", src), given)


@verb
def families() -> streamconv.FamilyTable:
    """Which model families go from which source to which target, and why others do not.

    >>> streamconv.families()
    <FamilyTable: ... families, ... conversions>
    """
    return verbs.families()
