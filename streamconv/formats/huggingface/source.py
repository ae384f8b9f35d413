"""A Hugging Face model folder as a source: config.json, and safetensors or torch files, in shards or one.

Which file counts: ``transformers/modeling_utils.py:_get_resolved_checkpoint_files``, in its order. The shards' index:
``{"metadata": {"total_size"}, "weight_map": {tensor: file}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.containers.json_file import read_config, read_entries
from streamconv.containers.open_any import open_any
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError, SourceError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.huggingface.names import (
    CONFIG,
    GENERATION,
    INDEX_SUFFIX,
    TIED_HEAD,
    WEIGHTS,
    HfNames,
    HfTensors,
)
from streamconv.formats.recorded import is_child_name
from streamconv.formats.source import Dropped, Fact, ShardedModel, SourceFormat, SourceOptions
from streamconv.models.biases import said_by
from streamconv.models.config.generation import StoredConfig
from streamconv.models.family import ModelFamily
from streamconv.models.orders import GluOrder
from streamconv.models.registry import family_of
from streamconv.models.translate import args_of, overruled

__all__ = ["SOURCE", "claims", "open_model"]

_MAX_INDEX_NBYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Weights:
    tensors: dict[str, LazyTensor]
    files: tuple[StoredFile, ...]
    where: Path
    words: str
    others: tuple[str, ...]


def claims(path: Path) -> str | None:
    """What makes a folder a Hugging Face model, None if nothing does."""
    if not path.is_dir():
        return None
    names = {child.name for child in path.iterdir()}
    weights = [name for kind in WEIGHTS for name in (kind, kind + INDEX_SUFFIX) if name in names]
    if weights and (CONFIG in names or weights[0].startswith("model.")):
        return weights[0]
    return None


def open_model(path: Path, options: SourceOptions) -> ShardedModel:
    """Open a Hugging Face model, metadata only.

    Args:
        path: the folder that has config.json.
        options: what the user says of it; its ``config`` outweighs config.json.

    Raises:
        SourceError: it is not there.
        UnsupportedError: its model is of a family that is refused by name, or stored in a way that is.
        DamagedError: files are missing, broken or contradict each other.
    """
    if not (path / CONFIG).is_file():
        raise SourceError(
            f"a model without {CONFIG}: nothing says what its tensors mean",
            where=path,
            remedy="copy config.json from where the model was published or saved",
        )
    own = StoredConfig(read_config(path / CONFIG))
    own.generation = read_config(path / GENERATION) if (path / GENERATION).is_file() else None
    family = family_of({**own, **options.config})
    config = overruled(family, own, options.config)
    meant = args_of(family, config)
    family, args = family.having(said_by(meant.known)), meant.args
    weights = _open_weights(path)
    names = HfNames(family)
    found = names.read(weights.tensors, args, weights.where)
    if args["num_layers"] != found.num_layers:
        raise DamagedError(
            f"{CONFIG} says {args['num_layers']} layers, {found.num_layers} are there",
            where=path,
            remedy="fetch the missing shards again",
        )
    model = ShardedModel(
        path=path,
        format="Hugging Face",
        tp=1,
        num_layers=found.num_layers,
        tensors={place: (tensor,) for place, tensor in found.tensors.items()},
        stages=(found.num_layers,),
        pp=1,
        args=args,
        iteration=options.iteration,
        vocab_size=_vocabulary(path, config, found.tensors[names.words]),
        qkv=family.huggingface.qkv,
        glu=GluOrder.GATE_UP if family.gated else None,
        config=own,
        family=family.name,
        named={file.path: file.globals for file in weights.files},
        copies_must_equal=True,
        called=names.stored_name,
    )
    model.facts.append(Fact(weights.words, f"{len(weights.tensors)} tensors"))
    if weights.others:
        model.warnings.append(f"{', '.join(weights.others)}: there too, not read; transformers takes the same files")
    _leave_behind(model, found, names)
    return model


def _leave_behind(model: ShardedModel, found: HfTensors, names: HfNames) -> None:
    """A tied head that is stored too, which must be the embedding, and buffers."""
    if found.head_copy is not None:
        model.copies.append((TIED_HEAD, found.head_copy, found.tensors[names.words]))
        model.dropped.append(Dropped(TIED_HEAD, found.head_copy.nbytes, f"a copy of the word embedding, {CONFIG} says"))
    if found.buffers:
        nbytes = sum(tensor.nbytes for tensor in found.buffers.values())
        model.dropped.append(
            Dropped(f"{len(found.buffers)} buffers", nbytes, "no parameters: computed when it is built")
        )


def _vocabulary(path: Path, config: Mapping[str, Any], words: LazyTensor) -> int:
    size = config.get("vocab_size")
    if size != words.shape[0]:
        raise DamagedError(
            f"{CONFIG} says a vocabulary of {size!r}, the embedding has {words.shape[0]} rows", where=path
        )
    return words.shape[0]


def _open_weights(folder: Path) -> _Weights:
    present = [name for kind in WEIGHTS for name in (kind, kind + INDEX_SUFFIX) if (folder / name).exists()]
    if not present:
        raise SourceError(
            "no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards", where=folder
        )
    chosen, *others = present
    if not chosen.endswith(INDEX_SUFFIX):
        file = open_any(folder / chosen)
        return _Weights(file.tensors(), (file,), file.path, chosen, tuple(others))
    weight_map = _weight_map(folder / chosen)
    files = {name: open_any(folder / name) for name in sorted(set(weight_map.values()))}
    tensors = {name: file.tensors() for name, file in files.items()}
    for tensor, name in weight_map.items():
        if tensor not in tensors[name]:
            raise DamagedError(f"{chosen} says that {tensor} is in {name}, and it is not", where=folder / name)
    for name, stored in tensors.items():
        if stray := sorted(set(stored) - set(weight_map)):
            raise DamagedError(f"{len(stray)} tensors that {chosen} does not name, as {stray[0]}", where=folder / name)
        if twice := [tensor for tensor in stored if weight_map[tensor] != name]:
            raise DamagedError(f"{twice[0]} is in {name}, and in {weight_map[twice[0]]} too", where=folder / name)
    whole = {tensor: tensors[name][tensor] for tensor, name in weight_map.items()}
    return _Weights(
        whole,
        tuple(files.values()),
        folder / chosen,
        f"{chosen}, {len(files)} shard{'s' if len(files) > 1 else ''}",
        tuple(others),
    )


def _weight_map(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise DamagedError("the index of shards is not a file", where=path, remedy="fetch it again")
    entries = read_entries(path, "index of shards", _MAX_INDEX_NBYTES).get("weight_map")
    if not isinstance(entries, dict):
        raise DamagedError("no index of shards: it has no weight_map with tensors and files", where=path)
    for name in entries.values():
        if not isinstance(name, str) or not is_child_name(name):
            raise DamagedError(f"the shard {str(name)[:80]!r} is not the name of a file beside it", where=path)
        if not (path.parent / name).is_file():
            raise DamagedError(f"the shard {name} is missing", where=path.parent, remedy="fetch it again")
    return entries


def _refusal(family: ModelFamily) -> str | None:
    """Every family is one of transformers."""
    return None


SOURCE = SourceFormat("huggingface", open_model, claims, _refusal)
