"""Open a checkpoint with what the user says of it, and recognise its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from streamconv.core.options import Given
from streamconv.formats.registry import open_source
from streamconv.formats.source import Fact, SourceFormat, StoredModel, positive_int
from streamconv.models.registry import family_of
from streamconv.models.translate import args_of

__all__ = ["Opened", "open_supplied", "supplied"]


class Opened(NamedTuple):
    """A source's format, the model with the user's configuration, and the family that this configuration names."""

    source: SourceFormat
    model: StoredModel
    named: str | None


def open_supplied(path: Path, given: Given, *, has_args: bool = True) -> Opened:
    """Open a checkpoint, and add what the user's configuration says.

    Args:
        path: a root, or the folder of one checkpoint.
        given: the user's options.
        has_args: whether what is made of the model has training arguments.

    Raises:
        StreamconvError: no format opens the checkpoint.
    """
    source, stored = open_source(path, given)
    model, named = supplied(stored, given.get("config", {}), has_args=has_args)
    return Opened(source, model, named)


def supplied(model: StoredModel, said: Mapping[str, Any], *, has_args: bool) -> tuple[StoredModel, str | None]:
    """The model with the user's configuration added, and the name of the family that the configuration names.

    If ``said`` is a ``config.json``, it only adds what the source lacks. If it is training arguments, which it is for a
    target with arguments and a source without ``config.json``, they replace the source's.
    """
    known = dict(model.args or {})
    if "model_type" not in said:
        if said and has_args and model.config is None:
            fact = Fact(f"training arguments {', '.join(sorted(said))}", "--config")
            return replace(model, args={**known, **said}).noting(facts=[fact]), None
        return model, None
    family = family_of(said)
    told = args_of(family, said, defaults=False).args
    told = {name: value for name, value in told.items() if known.get(name) is None}
    if told:
        fact = Fact(f"{len(told)} arguments from config.json", f"--config: {', '.join(sorted(told))}")
        model = replace(model, args={**known, **told}).noting(facts=[fact])
    vocabulary = positive_int(said, "vocab_size", model.path)
    if model.vocab_size is None and vocabulary is not None:
        fact = Fact(f"{vocabulary} true rows of the vocabulary", "--config: vocab_size")
        model = replace(model, vocab_size=vocabulary).noting(facts=[fact])
    return model, family.name
