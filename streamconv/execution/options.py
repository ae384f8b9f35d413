"""How a conversion runs, which changes nothing of what is written."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.dtypes import CAST_TYPES, DType
from streamconv.core.kinds import Choice, Flag
from streamconv.core.options import option
from streamconv.execution.registry import engine_names
from streamconv.execution.settings import DEFAULT_ENGINE
from streamconv.memory.options import SizeText
from streamconv.values.options import ReadingOptions

__all__ = ["BenchOptions", "ExtractOptions", "PublishOptions", "RunOptions", "StreamOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(ReadingOptions):
    """The budget and the way to read, the bytes that a thread moves at a time (None: at most 16 MiB), the engine."""

    block_size: str | None = option(SizeText(), "bytes that each thread moves at a time (default: up to 16M)")
    engine: str = option(
        Choice(engine_names),
        "threads (default), or serial: the single-threaded reference, to compare with",
        default=DEFAULT_ENGINE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """What a conversion may do to what is in its destination."""

    overwrite: bool = option(
        Flag(),
        "replace a checkpoint in DST, of whatever framework it is, once the new one is durable",
        default=False,
        main=True,
        destroys=True,
    )
    restart: bool = option(
        Flag(),
        "discard what a conversion that ended early left in DST, and begin anew",
        default=False,
        main=True,
        destroys=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How tensors are yielded."""

    copy: bool = option(Flag(), "yield tensors of their own, that stay valid", default=False)
    framework: str = option(
        Choice(("pt", "np"), also={"torch": "pt", "numpy": "np"}),
        "pt (default) for torch tensors, np for numpy arrays (bfloat16 by ml_dtypes)",
        default="pt",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How the disk is measured."""

    size: str = option(
        SizeText(), "bytes of the files that are written and read (default: 1G)", default="1G", main=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """What is wanted of the tensor, and of the file's place."""

    dtype: DType | None = option(
        CAST_TYPES,
        "cast a floating tensor to this type (default: as stored)",
        purpose="the type of the tensor",
        main=True,
    )
    overwrite: bool = option(
        Flag(),
        "replace the file, if it is there",
        default=False,
        purpose="what is in the place",
        main=True,
        destroys=True,
    )
