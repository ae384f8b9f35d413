"""A Hugging Face model folder as a source: config.json, and safetensors or torch files, in shards or one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from streamconv.core.errors import AmbiguousError, UsageError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.huggingface.names import ADAPTER, CONFIG, WEIGHTS
from streamconv.formats.huggingface.options import SOURCE_OPTIONS, HuggingFaceSourceOptions
from streamconv.formats.huggingface.refusals import refusal
from streamconv.formats.huggingface.weights import open_weights, weight_files
from streamconv.formats.named import NamedModel
from streamconv.formats.source import Fact, SourceFormat

__all__ = ["SOURCE", "claims", "open_model"]


def claims(path: Path) -> str | None:
    """What makes a folder a Hugging Face model, None if nothing does."""
    if not path.is_dir():
        return None
    return next(iter(weight_files(path)), None)


def open_model(path: Path, options: HuggingFaceSourceOptions) -> NamedModel:
    """Open a Hugging Face model, metadata only.

    Args:
        path: the folder that has config.json.
        options: the user's options for it.

    Raises:
        SourceError: it is not there.
        DamagedError: files are missing or broken, or the index and its shards disagree.
        AmbiguousError: an adapter lies beside the model.
        UsageError: an option is about something that is not there.
    """
    _refuse_adapter(path, ignored=options.ignore == "adapter")
    weights = open_weights(path)
    unread = f"{', '.join(weights.others)}: there too, not read; transformers takes the same files"
    model = NamedModel(
        path=path,
        home=path.parent if path.name in WEIGHTS and not (path / CONFIG).is_file() else path,
        format="Hugging Face",
        layout="TP 1 x PP 1",
        tensors=weights.tensors,
        placeholders=_placeholders(weights.tensors),
        lost=weights.lost,
        named={file.path: file.globals for file in weights.files},
    )
    return model.noting(
        facts=[Fact(weights.words, f"{len(weights.tensors)} tensors")],
        warnings=[*weights.doubts, *([unread] if weights.others else [])],
    )


def _placeholders(tensors: Mapping[str, LazyTensor]) -> frozenset[str]:
    """The parameters whose elements ZeRO stage 3 had elsewhere when the model was saved: of shape (0,), or (1,) before
    DeepSpeed 0.4 [``deepspeed/runtime/zero/partition_parameters.py:free_param``]. One such parameter may be real.
    """
    empty = frozenset(name for name, tensor in tensors.items() if tensor.shape in ((0,), (1,)))
    return empty if 2 * len(empty) > len(tensors) else frozenset()


def _refuse_adapter(path: Path, *, ignored: bool) -> None:
    """Refuse a model with an adapter beside it, unless the adapter is ``ignored``.

    With peft installed ``from_pretrained`` lays it over the model [transformers ``models/auto/auto_factory.py``,
    ``utils/peft_utils.py:find_adapter_config_file``].
    """
    found = sorted(child.name for child in path.glob("adapter_*") if child.name.startswith(ADAPTER))
    if found and not ignored:
        raise AmbiguousError(
            f"an adapter lies beside the model ({', '.join(found[:4])}): from_pretrained builds another model than "
            "these weights",
            where=path,
            remedy="merge it (peft's merge_and_unload), or go without it: --ignore adapter",
        )
    if ignored and not found:
        raise UsageError("--ignore adapter: there is none", where=path, remedy="leave it out")


SOURCE = SourceFormat("huggingface", open_model, claims, refusal, SOURCE_OPTIONS, "Hugging Face")
