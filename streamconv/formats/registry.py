"""All formats: the frameworks whose checkpoints are read and written, and which of them a folder belongs to.

A framework is a package with a ``SOURCE`` in its module ``source`` and a ``TARGET`` in its module ``target``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from streamconv.core.errors import AmbiguousError
from streamconv.core.options import Given
from streamconv.core.work_folder import refuse_unfinished
from streamconv.formats.common.refusals import OtherCheckpointError, titles
from streamconv.formats.frameworks import FRAMEWORKS
from streamconv.formats.recorded import is_child_name
from streamconv.formats.source import SourceFormat, StoredModel
from streamconv.formats.target import TargetFormat

__all__ = [
    "find_source",
    "known_sources",
    "known_targets",
    "open_source",
    "titles_from",
]

_REFUSES_OTHERS = "deepspeed"


def known_sources() -> tuple[SourceFormat, ...]:
    """The ``SOURCE`` of every framework."""
    return tuple(import_module(f"streamconv.formats.{name}.source").SOURCE for name in FRAMEWORKS)


def known_targets() -> tuple[TargetFormat, ...]:
    """The ``TARGET`` of every framework."""
    return tuple(import_module(f"streamconv.formats.{name}.target").TARGET for name in FRAMEWORKS)


def titles_from(*sources: str) -> str:
    """The families that are translated from these formats, for a message."""
    chosen = [source for source in known_sources() if source.name in sources]
    return titles(lambda family: None if any(source.refusal(family) is None for source in chosen) else "")


def open_source(path: Path, given: Given) -> tuple[SourceFormat, StoredModel]:
    """The format that claims a checkpoint, and the model that it opened, metadata only.

    Args:
        path: a root, or the folder of one checkpoint below it.
        given: the user's options, of which the format takes its own.

    Raises:
        DamagedError: a conversion into this folder was cut off while it moved its result into place.
        StreamconvError: the format's ``open`` refuses the checkpoint.
    """
    refuse_unfinished(path)
    source = find_source(path, given.get("tag"))
    try:
        return source, source.open(path, given.take(source.options))
    except OtherCheckpointError as error:
        error.remedy = _sources()
        raise


def find_source(path: Path, tag: str | None = None) -> SourceFormat:
    """The format that claims a checkpoint; without a claim, the one that refuses other frameworks' folders by name.

    Args:
        path: a root, or the folder of one checkpoint below it.
        tag: the folder below the root to open; it is looked at before the root.

    Raises:
        AmbiguousError: two formats claim it.
    """
    meant = [path / tag] if tag is not None and is_child_name(tag) and (path / tag).is_dir() else []
    for folder in (*meant, path):
        claims = {source.name: (source, words) for source in known_sources() if (words := source.claims(folder))}
        if len(claims) > 1:
            evidence = " and ".join(f"{name} ({words})" for name, (_, words) in claims.items())
            raise AmbiguousError(
                f"the folder looks like two checkpoints: {evidence}",
                where=folder,
                remedy="give the folder of the one that is meant (global_step*, iter_*), or name it with --tag",
            )
        for source, _ in claims.values():
            return source
    return next(source for source in known_sources() if source.name == _REFUSES_OTHERS)


def _sources() -> str:
    """The checkpoints that can be opened, for a message."""
    return (
        f"sources so far: Megatron-DeepSpeed and legacy Megatron-LM folders of "
        f"{titles_from('deepspeed', 'megatron-legacy')}; GPT-NeoX folders of {titles_from('gpt-neox')}; "
        f"Hugging Face folders of {titles_from('huggingface')}"
    )
