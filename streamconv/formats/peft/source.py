"""An adapter's own folder as a source: ``adapter_model.safetensors`` or ``.bin`` with its ``adapter_config.json``."""

from __future__ import annotations

from pathlib import Path

from streamconv.containers.open_any import open_any
from streamconv.containers.state_dict import state_dict_tensors
from streamconv.core.errors import SourceError
from streamconv.formats.common.adapter_files import ADAPTER_WEIGHTS
from streamconv.formats.named import NamedModel
from streamconv.formats.options import SourceOptions
from streamconv.formats.peft.options import SOURCE_OPTIONS
from streamconv.formats.remarks import Fact
from streamconv.formats.source import SourceFormat
from streamconv.models.family import ModelFamily

__all__ = ["SOURCE", "claims", "open_model"]

_MODELS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def claims(path: Path) -> str | None:
    """What makes a folder that of an adapter alone, None if nothing does, or a whole model is there too."""
    if not path.is_dir() or any((path / name).exists() for name in _MODELS):
        return None
    return next((name for name in ADAPTER_WEIGHTS if (path / name).is_file()), None)


def refusal(family: ModelFamily) -> str | None:
    """Why an adapter is no model of any family."""
    return "an adapter (PEFT) is no model by itself"


def open_model(path: Path, options: SourceOptions) -> NamedModel:
    """Open an adapter, metadata only.

    Raises:
        SourceError: it is not there.
        DamagedError: it is broken.
    """
    name = claims(path)
    if name is None:
        raise SourceError("no adapter_model.safetensors and no adapter_model.bin", where=path)
    file = open_any(path / name)
    tensors = state_dict_tensors(file.state, file.path)
    return NamedModel(
        path=path,
        home=path,
        format="PEFT",
        layout="an adapter",
        tensors=tensors,
        iteration=options.iteration,
        facts=(Fact(name, f"{len(tensors)} tensors"),),
        named={file.path: file.globals},
    )


SOURCE = SourceFormat("peft", open_model, claims, refusal, SOURCE_OPTIONS, "PEFT", holds_models=False)
