"""The two sides of a comparison: each checkpoint's tensors, under names that both have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamconv.core.errors import AmbiguousError, SourceError, StreamconvError
from streamconv.core.lazy import LazyTensor
from streamconv.core.options import Given
from streamconv.core.replica import Replica
from streamconv.formats.source import StoredModel
from streamconv.inspection.files import inspect_file
from streamconv.inspection.folders import inspect_folder
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import ParameterId, Section
from streamconv.planning.gather import Assembly, assemble
from streamconv.planning.opening import open_supplied
from streamconv.planning.recognise import recognise
from streamconv.planning.vocabulary import VocabularyPlan

__all__ = ["Copy", "Side", "open_side", "open_sides"]


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a tensor, the original that it should equal, and the name of the original if that is a whole tensor."""

    tensor: LazyTensor
    original: LazyTensor
    name: str | None


@dataclass(slots=True, repr=False)
class Side:
    """One checkpoint: its tensors by name, and the kind of names (canonical or stored).

    ``replicas`` are copies that should be equal within this side: those of ranks, and a tied head's. ``copies`` has the
    copies that are not in ``tensors``, under their own names. ``vocabulary`` names the tensors whose rows are tokens,
    ``lacks`` the parameters that this model lacks and others of its family have.
    """

    path: str
    what: str
    names: str
    tensors: dict[str, LazyTensor]
    vocabulary: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    vocab_size: int | None = None
    heads: int | None = None
    replicas: tuple[Replica, ...] = ()
    copies: dict[str, Copy] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Side({self.path!r}, {self.what}, {len(self.tensors)} tensors by {self.names} names)"


def open_sides(
    a: Path, b: Path, given_a: Given, given_b: Given, replicated: str = "first", otherwise: Given | None = None
) -> tuple[Side, Side]:
    """Open both sides under the same kind of names: canonical ones if both are translated models, else stored ones.

    Args:
        a: a file or folder.
        b: another.
        given_a: the user's options for ``a``.
        given_b: those for ``b``.
        replicated: which copy of ``a``'s replicated parameters is compared, ``first`` or ``mean``.
        otherwise: the options for ``b`` that are used if ``given_b`` leave it ambiguous.

    Raises:
        SourceError: a side is not there, or not a checkpoint.
        DamagedError: a side is broken.
        AmbiguousError: a side needs an option to be understood.
    """
    first = _canonical(a, given_a, replicated)
    try:
        second = _canonical(b, given_b, "first")
    except AmbiguousError:
        if otherwise is None:
            raise
        given_b = otherwise
        second = _canonical(b, given_b, "first")
    if isinstance(first, Side) and isinstance(second, Side):
        heads = second.heads if first.heads is None else first.heads
        if (first.heads is None) != (second.heads is None):
            return open_sides(a, b, given_a.plus(num_heads=heads), given_b.plus(num_heads=heads), replicated)
        return first, second
    refusals = [error for error in (first, second) if isinstance(error, StreamconvError)]
    sides = _stored(a, given_a), _stored(b, given_b)
    for side in sides:
        side.notes += [f"compared by stored names: {error.what}" for error in refusals[:1]]
    return sides


def open_side(path: Path, given: Given, replicated: str = "first", *, stored: bool = False) -> Side:
    """Open one checkpoint: under canonical names if it is a translated model, else under stored ones.

    Args:
        path: a file or folder.
        given: the user's options for it.
        replicated: which copy of a replicated parameter counts, ``first`` or ``mean``.
        stored: stored names are wanted, whatever it is.

    Raises:
        SourceError: it is not there, or not a checkpoint.
        DamagedError: it is broken.
        AmbiguousError: it needs an option to be understood.
    """
    found = None if stored else _canonical(path, given, replicated)
    if isinstance(found, Side):
        return found
    side = _stored(path, given)
    side.notes += [] if found is None else [f"by stored names: {found.what}"]
    return side


def _canonical(path: Path, given: Given, replicated: str) -> Side | StreamconvError:
    """A side under canonical names, or the error why it has none."""
    if not path.is_dir():
        return SourceError("a lone file", where=path)
    try:
        _, opened, named = open_supplied(path, given)
        model, family, sizes = recognise(opened, given.get("num_heads"), named, by_args=True)
    except AmbiguousError:
        raise
    except SourceError as error:
        # Not a translated model. Errors of broken or ambiguous checkpoints are not caught.
        return error
    kept = VocabularyPlan(sizes.vocab, sizes.vocab, None, "as stored")
    assembly = assemble(model, family, sizes, kept, replicated)
    tensors: dict[str, LazyTensor] = {}
    vocabulary = set()
    for stored, parts in assembly.whole.items():
        parameter, name = family.parameter(stored), stored.name
        names = [name] if len(parts) == 1 else [f"{name}.{part}" for part in parameter.parts]
        tensors |= dict(zip(names, parts, strict=True))
        if parameter.is_vocabulary:
            vocabulary.add(name)
    return Side(
        path=str(model.path),
        what=f"{model.format}: {family.title}, TP {model.tp} x PP {model.pp or 'unknown'}",
        names="canonical",
        tensors=tensors,
        vocabulary=frozenset(vocabulary),
        lacks=frozenset(_lacking(family, model.num_layers)),
        vocab_size=given.get("vocab_size", model.vocab_size),
        heads=sizes.heads,
        replicas=(*assembly.replicas, *(Replica(name, (whole, copy)) for name, copy, whole in model.copies)),
        copies=dict(_copies(assembly, model)),
    )


def _lacking(family: ModelFamily, num_layers: int) -> Iterator[str]:
    for key in family.choices - family.chosen:
        yield from (ParameterId(Section.LAYER, layer, key).name for layer in range(num_layers))


def _copies(assembly: Assembly, model: StoredModel) -> Iterator[tuple[str, Copy]]:
    for replica in assembly.replicas:
        for rank, copy in enumerate(replica.copies[1:], start=1):
            yield f"{replica.name} of rank {rank}", Copy(copy, replica.copies[0], replica.name)
    for name, copy, whole in model.copies:
        yield name, Copy(copy, whole, None)


def _stored(path: Path, given: Given) -> Side:
    """A side under the names in its files."""
    if not path.is_dir():
        report, tensors = inspect_file(path)
        return Side(report.path, report.what, "stored", tensors)
    inspected = inspect_folder(path, given)
    return Side(inspected.report.path, inspected.report.what, "stored", inspected.stored())
