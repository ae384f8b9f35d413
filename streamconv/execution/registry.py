"""The engines: one module each in ``execution/engines``, holding an ``ENGINE``, found there by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from streamconv.core.errors import UsageError
from streamconv.execution import engines

if TYPE_CHECKING:
    from streamconv.execution.engine import Engine

__all__ = ["engine_names", "find_engine", "known_engines"]


@cache
def known_engines() -> tuple[Engine, ...]:
    """Every engine, in the order of their modules' names."""
    names = [info.name for info in pkgutil.iter_modules(engines.__path__)]
    modules = (importlib.import_module(f"{engines.__name__}.{name}") for name in names)
    return tuple(module.ENGINE for module in modules)


def engine_names() -> tuple[str, ...]:
    """The names of the engines."""
    return tuple(engine.name for engine in known_engines())


def find_engine(name: str) -> Engine:
    """The engine called ``name``.

    Raises:
        UsageError: there is no such engine.
    """
    for engine in known_engines():
        if engine.name == name:
            return engine
    raise UsageError(f"--engine {name}: no such engine", remedy=f"choose one of {', '.join(engine_names())}")
