"""safetensors files with the names of the source: any model."""

from __future__ import annotations

from streamconv.containers.safetensors.writer import plan_safetensors_file
from streamconv.formats.names_kept.files import lay_out_names
from streamconv.formats.names_kept.safetensors.options import TARGET_OPTIONS
from streamconv.formats.target import NamedTarget, TargetFiles, TargetFormat

__all__ = ["TARGET", "lay_out"]


def lay_out(model: NamedTarget) -> TargetFiles:
    """The shards, and what goes along with them."""
    return lay_out_names(model, "model.safetensors", lambda _: plan_safetensors_file, "safetensors", keeps_shared=False)


TARGET = TargetFormat("safetensors", lay_out, lambda _: None, TARGET_OPTIONS, keeps_names=True)
