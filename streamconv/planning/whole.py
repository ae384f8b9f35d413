"""Any checkpoint as whole named tensors: by its own names, or, of one whose ranks hold shards, by canonical names."""

from __future__ import annotations

from pathlib import Path

from streamconv.core.options import Given
from streamconv.core.replica import Replica
from streamconv.core.tiling import whole_box
from streamconv.formats.lone_file import LONE_FILE, open_file
from streamconv.formats.named import NamedModel
from streamconv.formats.registry import open_named
from streamconv.formats.source import SourceFormat, StoredModel
from streamconv.models.fused import shard
from streamconv.planning.gather import assemble
from streamconv.planning.opening import supplied
from streamconv.planning.recognise import recognise
from streamconv.planning.vocabulary import VocabularyPlan

__all__ = ["open_whole", "whole_parameters"]


def open_whole(path: Path, given: Given, replicated: str = "first") -> tuple[SourceFormat, NamedModel]:
    """Open a checkpoint as whole named tensors: a file of tensors too, and a model whose ranks hold shards.

    Args:
        path: a root, the folder of one checkpoint, or a file.
        given: the user's options.
        replicated: which copy of a replicated parameter is taken.

    Raises:
        StreamconvError: no format opens the checkpoint, or its shards cannot be joined.
    """
    if path.is_file():
        given.take(LONE_FILE.options)
        return LONE_FILE, open_file(path)
    opened = open_named(path, given)
    found = opened.noted
    if isinstance(found, NamedModel):
        return opened.source, found
    model, named = supplied(found, given.get("config", {}), has_args=True)
    return opened.source, whole_parameters(model, given.get("num_heads"), named, replicated)


def whole_parameters(stored: StoredModel, num_heads: int | None, named: str | None, replicated: str) -> NamedModel:
    """A model whose ranks hold shards, as whole tensors: its own rows in their own order, as at TP 1, padding included.

    Args:
        stored: the model.
        num_heads: the user's number of attention heads.
        named: the family that the user's configuration names.
        replicated: which copy of a replicated parameter is taken.

    Raises:
        StreamconvError: its family is not known, so nothing says how its shards are joined.
    """
    model, family, sizes = recognise(stored, num_heads, named)
    kept = VocabularyPlan(sizes.vocab, sizes.vocab, None, "as stored")
    assembly = assemble(model, family, sizes, kept, replicated)
    tensors = {at.name: shard(family.parameter(at), parts, 1, 0, model.orders) for at, parts in assembly.whole.items()}
    padding = {
        name: [whole_box(assembly.sources[name].shape)] if boxes is None else list(boxes)
        for name, boxes in assembly.left_out.items()
    }
    copies = [Replica(name, (original, copy), "the word embedding") for name, copy, original in model.copies]
    return NamedModel(
        path=model.path,
        home=model.home or model.path,
        format=f"{model.format}: {family.title}",
        layout=f"TP {model.tp} x PP {model.pp or 'unknown'}",
        tensors=tensors,
        sources=assembly.sources,
        padding=padding,
        iteration=model.iteration,
        facts=model.facts,
        warnings=model.warnings,
        dropped=(*assembly.dropped, *model.dropped),
        replicas=(*assembly.replicas, *copies),
        named=model.named,
    )
