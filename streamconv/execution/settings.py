"""What runs a plan's jobs, and how. An engine sees files, offsets and bytes; it never sees a name of a model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_ENGINE", "EngineSettings"]

DEFAULT_ENGINE = "threads"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Block size in bytes, number of threads, how the source is read (one of ``IO_MODES``), the engine by its name."""

    block: int
    threads: int
    io: str
    engine: str = DEFAULT_ENGINE
