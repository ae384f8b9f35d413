"""Model families: one module each, holding a ``FAMILY``. A family knows parameters and axes, and no bytes."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from streamconv.families.base import ModelFamily

__all__ = ["known_families"]


@cache
def known_families() -> tuple[ModelFamily, ...]:
    """Every ``FAMILY`` found in the modules of this package."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))
