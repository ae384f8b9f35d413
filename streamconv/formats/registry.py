"""All formats: those whose checkpoints are read and written, and which of them a folder belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from streamconv.core.errors import AmbiguousError, UnsupportedError
from streamconv.core.options import Given
from streamconv.core.work_folder import refuse_unfinished
from streamconv.formats.common.refusals import titles
from streamconv.formats.frameworks import SOURCES, TARGETS
from streamconv.formats.huggingface.configuration import read_stored_config
from streamconv.formats.huggingface.names import CONFIG
from streamconv.formats.huggingface.naming import parameters_of
from streamconv.formats.named import NamedModel
from streamconv.formats.peft.names import is_adapter
from streamconv.formats.recorded import is_child_name
from streamconv.formats.source import SourceFormat, StoredModel
from streamconv.formats.surroundings import Meant, meant_by, unclaimed
from streamconv.formats.target import TargetFormat

__all__ = [
    "OpenedSource",
    "find_source",
    "known_sources",
    "known_targets",
    "open_named",
    "open_source",
    "titles_from",
]

_RUN, _MODEL, _ADAPTER = "deepspeed-zero", "huggingface", "peft"


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source's format and what it opened: a model by parameters, or by names; and how it was found, in remarks."""

    source: SourceFormat
    model: StoredModel | NamedModel
    remarks: tuple[str, ...] = ()


def known_sources() -> tuple[SourceFormat, ...]:
    """The ``SOURCE`` of every format that is read."""
    return tuple(import_module(f"streamconv.formats.{name}.source").SOURCE for name in SOURCES)


def known_targets() -> tuple[TargetFormat, ...]:
    """The ``TARGET`` of every format that is written."""
    return tuple(import_module(f"streamconv.formats.{name}.target").TARGET for name in TARGETS)


def titles_from(*sources: str) -> str:
    """The families that are translated from these formats, for a message."""
    chosen = [source for source in known_sources() if source.name in sources]
    return titles(lambda family: None if any(source.refusal(family) is None for source in chosen) else "")


def open_source(path: Path, given: Given) -> tuple[SourceFormat, StoredModel]:
    """The format that claims a checkpoint, and the model that it opened by parameters, metadata only.

    Args:
        path: a root, or the folder of one checkpoint below it.
        given: the user's options, of which the format takes its own.

    Raises:
        DamagedError: a conversion into this folder was cut off while it moved its result into place.
        StreamconvError: the format's ``open`` refuses the checkpoint, or its names are those of no family.
    """
    opened = open_named(path, given)
    model = opened.model.noting(warnings=opened.remarks)
    if isinstance(model, StoredModel):
        return opened.source, model
    if is_adapter(model.tensors):
        raise UnsupportedError(
            "an adapter (PEFT), which is no model by itself",
            where=model.path,
            remedy="merge it into the model that it was trained on first: --to safetensors --base FOLDER",
        )
    return opened.source, parameters_of(model, given.take(opened.source.options))


def open_named(path: Path, given: Given) -> OpenedSource:
    """The format that claims a checkpoint, and what it opened, metadata only: by names, if it has names.

    Raises:
        StreamconvError: see :func:`open_source`.
    """
    place = meant_by(path)
    refuse_unfinished(place.path)
    source = _source_of(place, given)
    options: Any = given.take(source.options)
    model = source.open(place.path, options)
    remarks = (*place.remarks, *_remarks(source, place.path, given))
    if isinstance(model, NamedModel):
        config, faults = read_stored_config(model.home)
        model = replace(model, config=config).noting(warnings=faults)
    return OpenedSource(source, model, remarks)


def find_source(path: Path, tag: str | None = None, weights: str | None = None) -> SourceFormat:
    """The format that claims a checkpoint.

    Args:
        path: a root, or the folder of one checkpoint below it.
        tag: the folder below the root to open; it is looked at before the root.
        weights: ``master`` if the masters of a run are wanted, beside which lies the model that it saved.

    Raises:
        AmbiguousError: two formats claim it.
        SourceError: none does; the message says what was seen there.
    """
    place = meant_by(path)
    values = {name: value for name, value in (("tag", tag), ("weights", weights)) if value is not None}
    return _source_of(place, Given(values))


def _source_of(place: Meant, given: Given) -> SourceFormat:
    tag, path = given.get("tag"), place.path
    meant = [path / tag] if tag is not None and is_child_name(tag) and (path / tag).is_dir() else []
    for folder in (*meant, path):
        claims = {source.name: (source, words) for source in known_sources() if (words := source.claims(folder))}
        for saved in (_MODEL, _ADAPTER):
            if claims.keys() == {_RUN, saved}:
                return claims[_RUN if _wants_run(folder, given, saved) else saved][0]
        if len(claims) > 1 and _MODEL in claims and not (folder / CONFIG).is_file():
            del claims[_MODEL]  # a stray file of weights
        if len(claims) > 1:
            evidence = " and ".join(f"{name} ({words})" for name, (_, words) in claims.items())
            raise AmbiguousError(
                f"the folder looks like two checkpoints: {evidence}",
                where=folder,
                remedy="give the folder of the one that is meant (global_step*, iter_*), or name it with --tag",
            )
        for source, _ in claims.values():
            return source
    raise unclaimed(place, known_sources())


def _wants_run(folder: Path, given: Given, saved: str) -> bool:
    """Whether the run is meant in a folder with a model, or an adapter, and the state of the run that saved it: if
    the masters are asked for, or the model holds placeholders alone.
    """
    if given.get("weights") is not None:
        return bool(given.get("weights") == "master")
    model = _claimant(saved).open(folder, given.take(_claimant(saved).options))
    return isinstance(model, NamedModel) and bool(model.placeholders)


def _claimant(name: str) -> SourceFormat:
    return next(source for source in known_sources() if source.name == name)


def _remarks(source: SourceFormat, path: Path, given: Given) -> Iterable[str]:
    """What a user should know of a folder that has a whole model and the state of the run that saved it."""
    if source.name not in (_MODEL, _RUN) and (stray := _claimant(_MODEL).claims(path)):
        return [f"{stray} lies beside the checkpoint, and is not read"]
    beside = {each.name for each in known_sources() if each.name in (_RUN, _MODEL, _ADAPTER) and each.claims(path)}
    if len(beside) < 2 or _RUN not in beside:
        return []
    if source.name != _RUN:
        what = "model" if source.name == _MODEL else "adapter"
        return [f"the run's DeepSpeed state lies beside the {what}: --weights master takes its masters"]
    return [] if given.get("weights") else ["the model beside the run holds placeholders: the run's state is taken"]
