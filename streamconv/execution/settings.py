"""Ways to run a plan's jobs. An engine sees files, offsets and bytes; it never sees a name of a model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EngineSettings"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Block size in bytes, number of threads, how the source is read (one of ``IO_MODES``)."""

    block: int
    threads: int
    io: str
