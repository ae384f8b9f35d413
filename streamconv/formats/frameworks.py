"""Which frameworks there are, and their options; nothing of them is imported beyond the declarations of options."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from streamconv.formats.options import SourceOptions, TargetOptions

__all__ = ["FRAMEWORKS", "source_options", "target_names", "target_options"]

FRAMEWORKS = ("deepspeed", "huggingface", "megatron.core", "megatron.legacy", "gpt_neox")
"""The packages below ``streamconv.formats``, in display order."""


def target_names() -> tuple[str, ...]:
    """The names of the formats that are written, without importing them."""
    return tuple(name.replace(".", "-").replace("_", "-") for name in FRAMEWORKS)


def source_options() -> tuple[type[SourceOptions], ...]:
    """The dataclasses of the sources' options."""
    return tuple(_options_module(name).SOURCE_OPTIONS for name in FRAMEWORKS)


def target_options() -> dict[str, type[TargetOptions]]:
    """The dataclasses of the targets' options, by the targets' names."""
    return {name: _options_module(place).TARGET_OPTIONS for name, place in zip(target_names(), FRAMEWORKS, strict=True)}


def _options_module(name: str) -> Any:
    return import_module(f"streamconv.formats.{name}.options")
