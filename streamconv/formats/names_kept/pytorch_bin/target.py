"""torch files with the names of the source, each a state dict: any model."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath

from streamconv.containers.torch_save.zip_writer import plan_torch_file
from streamconv.formats.names_kept.files import lay_out_names
from streamconv.formats.names_kept.pytorch_bin.options import TARGET_OPTIONS
from streamconv.formats.target import Container, NamedTarget, TargetFiles, TargetFormat

__all__ = ["TARGET", "lay_out"]


def lay_out(model: NamedTarget) -> TargetFiles:
    """The shards, and what goes along with them."""
    return lay_out_names(model, "pytorch_model.bin", _container, "torch", keeps_shared=True)


def _container(path: str) -> Container:
    return partial(plan_torch_file, PurePosixPath(path).stem)


TARGET = TargetFormat("pytorch-bin", lay_out, lambda _: None, TARGET_OPTIONS, keeps_names=True)
