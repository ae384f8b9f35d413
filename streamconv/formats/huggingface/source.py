"""A Hugging Face model folder as a source: config.json, and safetensors or torch files, in shards or one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.json_file import read_config
from streamconv.core.errors import AmbiguousError, DamagedError, SourceError, UsageError
from streamconv.core.lazy import LazyTensor
from streamconv.core.text import shown
from streamconv.formats.common.shards import check_axes
from streamconv.formats.huggingface.generation import read_generation
from streamconv.formats.huggingface.names import (
    ADAPTER,
    CONFIG,
    INDEX_SUFFIX,
    WEIGHTS,
    HfNames,
    HfTensors,
)
from streamconv.formats.huggingface.options import SOURCE_OPTIONS, HuggingFaceSourceOptions
from streamconv.formats.huggingface.passed_over import dropped_buffers
from streamconv.formats.huggingface.refusals import refusal
from streamconv.formats.huggingface.weights import open_weights
from streamconv.formats.source import Dropped, Fact, SourceFormat, StoredModel
from streamconv.models.biases import said_by
from streamconv.models.config.generation import StoredConfig
from streamconv.models.config.settings import Size
from streamconv.models.family import ModelFamily
from streamconv.models.orders import GluOrder
from streamconv.models.parameter import ParameterId
from streamconv.models.registry import family_of
from streamconv.models.translate import args_of, doubts_of, overruled

__all__ = ["SOURCE", "claims", "open_model"]


def claims(path: Path) -> str | None:
    """What makes a folder a Hugging Face model, None if nothing does."""
    if not path.is_dir():
        return None
    names = {child.name for child in path.iterdir()}
    weights = [name for kind in WEIGHTS for name in (kind, kind + INDEX_SUFFIX) if name in names]
    if weights and (CONFIG in names or weights[0].startswith("model.")):
        return weights[0]
    return None


def open_model(path: Path, options: HuggingFaceSourceOptions) -> StoredModel:
    """Open a Hugging Face model, metadata only.

    Args:
        path: the folder that has config.json.
        options: the user's options for it; their ``config`` outweighs config.json.

    Raises:
        SourceError: it is not there.
        UnsupportedError: the family of the model, or the way it is stored, is refused by name.
        DamagedError: files are missing, broken or contradict each other.
        AmbiguousError: an adapter lies beside the model.
        UsageError: an option is about something that is not there.
    """
    _refuse_adapter(path, ignored=options.ignore == "adapter")
    if not (path / CONFIG).is_file():
        raise SourceError(
            f"a model without {CONFIG}: nothing says what its tensors mean",
            where=path,
            remedy="copy config.json from where the model was published or saved",
        )
    own = StoredConfig(read_config(path / CONFIG))
    own.generation, faults = read_generation(path)
    family = family_of({**own, **options.entries})
    config = overruled(family, own, options.entries)
    translation = args_of(family, config)
    family, args = family.having(said_by(translation.known)), translation.args
    weights = open_weights(path)
    names = HfNames(family, own.get("architectures"))
    read = names.read(weights.tensors, args, weights.where)
    if args["num_layers"] != read.num_layers:
        raise _wrong_layers(path, family, args["num_layers"], read.num_layers)
    tensors: dict[ParameterId, tuple[LazyTensor, ...]] = {at: (tensor,) for at, tensor in read.tensors.items()}
    check_axes(tensors, path, names.stored_name)
    model = StoredModel(
        path=path,
        format="Hugging Face",
        tp=1,
        num_layers=read.num_layers,
        tensors=tensors,
        stages=(read.num_layers,),
        pp=1,
        args=args,
        iteration=options.iteration,
        vocab_size=_vocabulary(path, config, read.tensors[names.words]),
        qkv=family.huggingface.qkv,
        glu=GluOrder.GATE_UP if family.gated else None,
        config=own,
        family=family.name,
        named={file.path: file.globals for file in weights.files},
        copies=() if read.head_copy is None else ((read.head_name, read.head_copy, read.tensors[names.words]),),
        copies_must_equal=True,
        called=names.stored_name,
    )
    unread = f"{', '.join(weights.others)}: there too, not read; transformers takes the same files"
    return model.noting(
        facts=[Fact(weights.words, f"{len(weights.tensors)} tensors")],
        warnings=[
            *translation.warnings,
            *doubts_of(family, options.entries, "--config"),
            *weights.doubts,
            *faults,
            *([unread] if weights.others else []),
        ],
        dropped=_left_behind(read),
    )


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


def _wrong_layers(path: Path, family: ModelFamily, said: int, found: int) -> DamagedError:
    """The error for a wrong count: transformers builds the layers that the configuration counts, and ignores more."""
    entry = next(row.entry for row in family.huggingface.settings if isinstance(row, Size) and row.size == "num_layers")
    words = f"{CONFIG} says {said} layers, {found} are there"
    counts = f'say {{"{entry}": {found}}} in --config FILE'
    if found < said:
        return DamagedError(words, where=path, remedy=f"fetch the model again; or, if it has {found}, {counts}")
    rest = f"the layers from {said} on, which transformers passes over: load the model with it and save it again"
    return DamagedError(words, where=path, remedy=f"if all are the model's, {counts}; to go without {rest}")


def _left_behind(read: HfTensors) -> Iterator[Dropped]:
    """The tensors that are not converted: a tied head's copy, which must equal the embedding, and buffers."""
    if read.head_copy is not None:
        yield Dropped(read.head_name, read.head_copy.nbytes, f"a copy of the word embedding, {CONFIG} says")
    yield from dropped_buffers(read.buffers)


def _vocabulary(path: Path, config: Mapping[str, Any], words: LazyTensor) -> int:
    size, rows = config.get("vocab_size"), words.shape[0]
    if size != rows:
        raise DamagedError(
            f"{CONFIG} says a vocabulary of {shown(size)}, the embedding has {rows} rows",
            where=path,
            remedy=f'fetch the model again; or, if all are the model\'s, say {{"vocab_size": {rows}}} in --config FILE',
        )
    return rows


SOURCE = SourceFormat("huggingface", open_model, claims, refusal, SOURCE_OPTIONS, "Hugging Face")
