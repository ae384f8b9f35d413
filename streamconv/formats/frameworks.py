"""Which formats there are, and their options; nothing of them is imported beyond the declarations of options.

A format is a package below ``streamconv.formats``. One that is read has a ``SOURCE`` in its module ``source`` and a
``SOURCE_OPTIONS`` in ``options``; one that is written has a ``TARGET`` in ``target`` and a ``TARGET_OPTIONS``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from streamconv.formats.options import SourceOptions, TargetOptions

__all__ = ["FRAMEWORKS", "SOURCES", "TARGETS", "source_options", "target_names", "target_options"]

SOURCES = ("deepspeed", "deepspeed.zero", "huggingface", "peft", "megatron.core", "megatron.legacy", "gpt_neox")
"""The packages of the formats that are read, in display order."""

TARGETS = (
    *("deepspeed", "huggingface", "megatron.core", "megatron.legacy", "gpt_neox"),
    *("names_kept.safetensors", "names_kept.pytorch_bin"),
)
"""The packages of the formats that are written, in display order."""

FRAMEWORKS = tuple(dict.fromkeys((*SOURCES, *TARGETS)))
"""All of them."""

_CALLED = {"names_kept.safetensors": "safetensors", "names_kept.pytorch_bin": "pytorch-bin"}


def target_names() -> tuple[str, ...]:
    """The names of the formats that are written, without importing them."""
    return tuple(_CALLED.get(name, name.replace(".", "-").replace("_", "-")) for name in TARGETS)


def source_options() -> tuple[type[SourceOptions], ...]:
    """The dataclasses of the sources' options."""
    return tuple(_options_module(name).SOURCE_OPTIONS for name in SOURCES)


def target_options() -> dict[str, type[TargetOptions]]:
    """The dataclasses of the targets' options, by the targets' names."""
    return {name: _options_module(place).TARGET_OPTIONS for name, place in zip(target_names(), TARGETS, strict=True)}


def _options_module(name: str) -> Any:
    return import_module(f"streamconv.formats.{name}.options")
