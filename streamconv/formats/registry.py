"""All formats: those whose checkpoints are read and written, and which of them a folder belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from streamconv.core.errors import AmbiguousError, UnsupportedError
from streamconv.core.options import Given
from streamconv.core.work_folder import refuse_unfinished
from streamconv.formats.common.refusals import titles
from streamconv.formats.deepspeed.zero.options import MASTER
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
    "ADAPTER",
    "MODEL",
    "RUN",
    "OpenedSource",
    "find_source",
    "known_sources",
    "known_targets",
    "open_named",
    "open_source",
    "titles_from",
]

RUN, MODEL, ADAPTER = "deepspeed-zero", "huggingface", "peft"
"""The formats of a run of DeepSpeed with a model of its own, and of what its trainer saves beside it."""


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source's format and what it opened: a model by parameters, or by names; and how it was found, in remarks."""

    source: SourceFormat
    model: StoredModel | NamedModel
    remarks: tuple[str, ...] = ()

    @property
    def noted(self) -> StoredModel | NamedModel:
        """The model with the remarks as warnings."""
        return self.model.noting(warnings=self.remarks)


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
    model = opened.noted
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
    claimed = _claimed(place, given)
    options: Any = given.take(claimed.source.options)
    model = claimed.opened or claimed.source.open(place.path, options)
    if isinstance(model, NamedModel):
        config, faults = read_stored_config(model.home)
        model = replace(model, config=config).noting(warnings=faults)
    return OpenedSource(claimed.source, model, (*place.remarks, *claimed.remarks))


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
    return _claimed(place, Given(values)).source


@dataclass(frozen=True, slots=True)
class _Claimed:
    """The format that a folder is of, remarks on what lies beside, and the model, if it had to be opened to tell."""

    source: SourceFormat
    remarks: tuple[str, ...] = ()
    opened: StoredModel | NamedModel | None = None


def _claimed(place: Meant, given: Given) -> _Claimed:
    tag, path = given.get("tag"), place.path
    meant = [path / tag] if tag is not None and is_child_name(tag) and (path / tag).is_dir() else []
    for folder in (*meant, path):
        claims = {source.name: (source, words) for source in known_sources() if (words := source.claims(folder))}
        for saved in (MODEL, ADAPTER):
            if claims.keys() == {RUN, saved}:
                return _run_or_saved(folder, given, claims[RUN][0], claims[saved][0])
        stray = None
        if len(claims) > 1 and MODEL in claims and not (folder / CONFIG).is_file():
            _, stray = claims.pop(MODEL)  # weights without a configuration are no checkpoint of their own
        if len(claims) > 1:
            evidence = " and ".join(f"{name} ({words})" for name, (_, words) in claims.items())
            raise AmbiguousError(
                f"the folder looks like two checkpoints: {evidence}",
                where=folder,
                remedy="give the folder of the one that is meant (global_step*, iter_*), or name it with --tag",
            )
        for source, _ in claims.values():
            if folder != path:
                stray = next(each for each in known_sources() if each.name == MODEL).claims(path)
            return _Claimed(source, (f"{stray} lies beside the checkpoint, and is not read",) if stray else ())
    raise unclaimed(place, known_sources())


def _run_or_saved(folder: Path, given: Given, run: SourceFormat, saved: SourceFormat) -> _Claimed:
    """Which is meant in a folder with a model, or an adapter, and the state of the run that saved it: the run if the
    masters are asked for, or if the model holds placeholders alone.
    """
    what = "model" if saved.name == MODEL else "adapter"
    weights = given.get("weights")
    if weights == MASTER:
        return _Claimed(run)
    opened = None if weights is not None else saved.open(folder, given.take(saved.options))
    if isinstance(opened, NamedModel) and opened.placeholders:
        return _Claimed(run, (f"the {what} beside the run holds placeholders: the run's state is taken",))
    remark = f"the run's DeepSpeed state lies beside the {what}: --weights master takes its masters"
    return _Claimed(saved, (remark,), opened)
