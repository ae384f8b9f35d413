"""The settings of an engine, which runs a plan's jobs. It sees files, offsets and bytes, never a model's names."""

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
