"""The names of transformers' models over any container: named tensors as a family's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError, SourceError, StreamconvError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.text import shown
from streamconv.formats.common.shards import check_axes
from streamconv.formats.huggingface.names import CONFIG, HfNames, HfTensors
from streamconv.formats.huggingface.passed_over import dropped_buffers
from streamconv.formats.named import NamedModel
from streamconv.formats.options import SourceOptions
from streamconv.formats.source import Dropped, StoredModel
from streamconv.formats.wrappers import without_wrappers
from streamconv.models.biases import said_by
from streamconv.models.config.generation import StoredConfig
from streamconv.models.config.settings import Size
from streamconv.models.family import ModelFamily
from streamconv.models.orders import GluOrder
from streamconv.models.parameter import ParameterId
from streamconv.models.registry import family_of
from streamconv.models.translate import args_of, doubts_of, overruled

__all__ = ["own_names", "parameters_of", "refuse_placeholders"]


def parameters_of(model: NamedModel, options: SourceOptions) -> StoredModel:
    """The parameters of a model whose names are those of transformers.

    Args:
        model: what a container holds.
        options: the user's options; their ``config`` outweighs the model's own.

    Raises:
        SourceError: there is no configuration.
        UnsupportedError: the family of the model, or the way it is stored, is refused by name.
        DamagedError: tensors are missing, misshaped, or placeholders.
    """
    if model.config is None and "model_type" not in options.entries:
        raise SourceError(
            f"a model without {CONFIG}: nothing says what its tensors mean",
            where=model.home,
            remedy=f"copy {CONFIG} there from where the model was published or saved, or give it with --config FILE; "
            "--to safetensors keeps the names and needs none",
        )
    refuse_placeholders(model)
    own = model.config if model.config is not None else StoredConfig(options.entries)
    family = family_of({**own, **options.entries})
    config = overruled(family, own, options.entries)
    translation = args_of(family, config)
    family, args = family.having(said_by(translation.known)), translation.args
    names = HfNames(family, own.get("architectures"))
    model = without_wrappers(model, _names(names, args))
    read = names.read(model.tensors, args, model.path)
    if args["num_layers"] != read.num_layers:
        raise _wrong_layers(model.path, family, args["num_layers"], read.num_layers)
    tensors: dict[ParameterId, tuple[LazyTensor, ...]] = {at: (tensor,) for at, tensor in read.tensors.items()}
    check_axes(tensors, model.path, names.stored_name)
    stored = StoredModel(
        path=model.path,
        format=model.format,
        tp=1,
        num_layers=read.num_layers,
        tensors=tensors,
        stages=(read.num_layers,),
        pp=1,
        args=args,
        iteration=options.iteration or model.iteration,
        vocab_size=_vocabulary(model.path, config, read.tensors[names.words]),
        qkv=family.huggingface.qkv,
        glu=GluOrder.GATE_UP if family.gated else None,
        config=own,
        family=family.name,
        named=model.named,
        copies=() if read.head_copy is None else ((read.head_name, read.head_copy, read.tensors[names.words]),),
        copies_must_equal=True,
        called=names.stored_name,
        home=model.home,
        masters=model.masters,
    )
    return stored.noting(
        facts=model.facts,
        warnings=[*translation.warnings, *doubts_of(family, options.entries, "--config"), *model.warnings],
        dropped=[*_left_behind(read), *model.dropped],
    )


def own_names(config: Mapping[str, Any]) -> frozenset[str]:
    """The names that a model has by its configuration; none if its family is not translated."""
    try:
        family = family_of(config)
        args = args_of(family, config).args
    except StreamconvError:
        return frozenset()
    return _names(HfNames(family), args)


def _names(names: HfNames, args: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name, _ in names.slots(args["num_layers"], has_head=True))


def refuse_placeholders(model: NamedModel) -> None:
    """Refuse a model whose tensors have their elements elsewhere.

    Raises:
        UnsupportedError: it has such tensors.
    """
    if not model.placeholders:
        return
    name = min(model.placeholders)
    raise UnsupportedError(
        f"{len(model.placeholders)} of {len(model.tensors)} tensors, such as {name}, have no elements: they are ZeRO "
        "stage 3's placeholders, and the weights are in the run's global_step* folder",
        where=model.path,
        remedy="give that folder; or save the model with stage3_gather_16bit_weights_on_model_save",
    )


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
