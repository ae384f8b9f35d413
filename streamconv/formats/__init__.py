"""Framework folder layouts: which files make a checkpoint, and which rank owns what."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from streamconv.errors import AmbiguousError
from streamconv.families import known_families
from streamconv.formats.base import SourceFormat
from streamconv.formats.recorded import is_child_name
from streamconv.formats.target import TargetFormat

__all__ = ["find_source", "known_sources", "known_targets", "titles_from"]

_KNOWS_THE_OTHERS = "deepspeed"


@cache
def _modules() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))


def known_sources() -> tuple[SourceFormat, ...]:
    """Every ``SOURCE`` found in the modules of this package."""
    return tuple(module.SOURCE for module in _modules() if hasattr(module, "SOURCE"))


def known_targets() -> tuple[TargetFormat, ...]:
    """Every ``TARGET`` found in the modules of this package."""
    return tuple(module.TARGET for module in _modules() if hasattr(module, "TARGET"))


def titles_from(*sources: str) -> str:
    """The families that checkpoints of these formats can be of, for a message."""
    chosen = [source for source in known_sources() if source.name in sources]
    families = [family for family in known_families() if any(source.refusal(family) is None for source in chosen)]
    return ", ".join(family.title for family in families)


def find_source(path: Path, tag: str | None = None) -> SourceFormat:
    """The format of a checkpoint. A folder that none of them claims goes to the one that refuses others by their name.

    Args:
        path: a root, or the folder of one checkpoint below it.
        tag: which folder below the root is meant; what that holds counts first.

    Raises:
        AmbiguousError: two formats claim it.
    """
    meant = [path / tag] if tag is not None and is_child_name(tag) and (path / tag).is_dir() else []
    for folder in (*meant, path):
        claims = {source.name: (source, words) for source in known_sources() if (words := source.claims(folder))}
        if len(claims) > 1:
            evidence = " and ".join(f"{name} ({words})" for name, (_, words) in claims.items())
            raise AmbiguousError(
                f"the folder looks like two checkpoints: {evidence}",
                where=folder,
                remedy="give the folder of the one that is meant (global_step*, iter_*), or name it with --tag",
            )
        for source, _ in claims.values():
            return source
    return next(source for source in known_sources() if source.name == _KNOWS_THE_OTHERS)
