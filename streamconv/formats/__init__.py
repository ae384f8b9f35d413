"""Framework folder layouts: which files make a checkpoint, and which rank owns what."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from streamconv.formats.base import SourceFormat, TargetFormat

__all__ = ["known_sources", "known_targets"]


@cache
def _modules() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))


def known_sources() -> tuple[SourceFormat, ...]:
    """Every ``SOURCE`` found in the modules of this package."""
    return tuple(module.SOURCE for module in _modules() if hasattr(module, "SOURCE"))


def known_targets() -> tuple[TargetFormat, ...]:
    """Every ``TARGET`` found in the modules of this package."""
    return tuple(module.TARGET for module in _modules() if hasattr(module, "TARGET"))
