"""The two sides of a comparison: each checkpoint's tensors, under names that both have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from streamconv.containers.open_any import all_files, checkpoint_files
from streamconv.core.errors import AmbiguousError, DamagedError, SourceError, StreamconvError
from streamconv.core.lazy import LazyTensor
from streamconv.core.options import Given
from streamconv.core.replica import Replica
from streamconv.formats.deepspeed.names import is_optimizer_file
from streamconv.formats.huggingface.naming import own_names, refuse_placeholders
from streamconv.formats.peft.adapter import adapter_of
from streamconv.formats.registry import RUN, find_source
from streamconv.formats.source import StoredModel
from streamconv.formats.wrappers import without_wrappers
from streamconv.inspection.beside import files_beside
from streamconv.inspection.files import inspect_file
from streamconv.inspection.folders import inspect_folder
from streamconv.inspection.report import BROKEN, UNSAFE, InspectionReport
from streamconv.inspection.zero3 import FlatParameters
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import ParameterId, Section
from streamconv.planning.gather import Assembly, assemble
from streamconv.planning.opening import open_supplied
from streamconv.planning.recognise import recognise
from streamconv.planning.vocabulary import VocabularyPlan
from streamconv.planning.whole import open_whole
from streamconv.verification.rest import NotCompared, rest_of, unused_files
from streamconv.verification.side import Copy, Side

__all__ = ["open_side", "open_sides"]


_VALUES = NotCompared("what is no tensor in files of tensors", "steps, arguments and other values are not compared", 0)

_OTHER = "another checkpoint in this folder"


def open_sides(
    a: Path,
    b: Path,
    given_a: Given,
    given_b: Given,
    replicated: str = "first",
    otherwise: Given | None = None,
    *,
    everything: bool = False,
) -> tuple[Side, Side]:
    """Open both sides under the same kind of names: canonical ones if both are translated models; else the model's own
    ones, without wrappers, if both have whole tensors, or shards that can be joined, and they are not stored alike;
    else stored ones.

    Under canonical and own names the sides have the model, under stored names all tensors.

    Args:
        a: a file or folder.
        b: another.
        given_a: the user's options for ``a``.
        given_b: those for ``b``.
        replicated: which copy of ``a``'s replicated parameters is compared, ``first`` or ``mean``.
        otherwise: the options for ``b`` that are used if ``given_b`` leave it ambiguous.
        everything: compare all tensors by file and name, also those of translated models.

    Raises:
        SourceError: a side is not there, or not a checkpoint.
        DamagedError: a side is broken.
        AmbiguousError: a side needs an option to be understood.
    """
    if everything:
        return _everything(a, given_a), _everything(b, given_b)
    with given_a.naming_its_own():
        first = _canonical(a, given_a, replicated)
    with given_b.naming_its_own():
        try:
            second = _canonical(b, given_b, "first")
        except AmbiguousError:
            if otherwise is None:
                raise
            given_b = replace(otherwise, own_flags=given_b.own_flags)
            second = _canonical(b, given_b, "first")
    if isinstance(first, Side) and isinstance(second, Side):
        heads = second.heads if first.heads is None else first.heads
        if (first.heads is None) != (second.heads is None):
            return open_sides(a, b, given_a.plus(num_heads=heads), given_b.plus(num_heads=heads), replicated)
        return first, second
    refusals = [error for error in (first, second) if isinstance(error, StreamconvError)]
    own_a, own_b = _own(a, given_a, replicated), _own(b, given_b, "first")
    # Two files are compared whole.
    own = (own_a, own_b) if own_a is not None and own_b is not None and not (a.is_file() and b.is_file()) else None
    if own is not None and own[0].what != own[1].what:
        return own
    if (own_a is None) != (own_b is None) and all(_is_run(*side) for side in ((a, given_a), (b, given_b))):
        # One of them is broken: its tensors have no names but those in its files.
        sides = _by_file(a, given_a), _by_file(b, given_b)
    else:
        sides = _stored(a, given_a), _stored(b, given_b)
    # What is stored alike is compared whole, with all that is no part of the model.
    if own is not None and sides[0].tensors.keys() != sides[1].tensors.keys():
        return own
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
    except DamagedError as error:
        if _is_run(path, given):
            return error  # by stored names, what is broken or missing is named
        raise
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
        not_compared=[*_left_out(assembly, model), *_beside(path, model.path)],
        vocab_size=given.get("vocab_size", model.vocab_size),
        heads=sizes.heads,
        replicas=(*assembly.replicas, *(Replica(name, (whole, copy)) for name, copy, whole in model.copies)),
        copies=dict(_copies(assembly, model)),
    )


def _own(path: Path, given: Given, replicated: str) -> Side | None:
    """A side under the model's own names, None if it has none."""
    try:
        _, opened = open_whole(path, given, replicated)
        refuse_placeholders(opened)
    except AmbiguousError:
        raise
    except (SourceError, DamagedError):
        return None  # by stored names, what is broken or missing is named
    model = adapter_of(opened) or without_wrappers(opened, own_names(opened.config or {}))
    rest = [NotCompared(dropped.name, dropped.reason, 0) for dropped in model.dropped]
    if path.is_dir():
        known = {str(file.relative_to(model.path)) for file in model.named if file.is_relative_to(model.path)}
        files = unused_files(model.path, model.tensors.values())
        rest += [
            NotCompared(name, "no tensor of the model is in it", 0)
            for name in files
            if name not in known and not is_optimizer_file(name)
        ]
        rest += _beside(path, model.path)
    return Side(
        path=str(model.path),
        what=f"{model.format}, {model.layout}",
        names="own",
        tensors=dict(model.tensors),
        not_compared=rest,
        replicas=model.replicas,
        notes=list(model.warnings),
    )


def _is_run(path: Path, given: Given) -> bool:
    """Whether a folder is a run of DeepSpeed with a model of its own."""
    try:
        return path.is_dir() and find_source(path, given.get("tag"), given.get("weights")).name == RUN
    except SourceError:
        return False


def _lacking(family: ModelFamily, num_layers: int) -> Iterator[str]:
    for key in family.choices - family.chosen:
        yield from (ParameterId(Section.LAYER, layer, key).name for layer in range(num_layers))


def _left_out(assembly: Assembly, model: StoredModel) -> Iterator[NotCompared]:
    """What is in the folder of a model and is no parameter: its verdict does not speak of it."""
    yield from (NotCompared(dropped.name, dropped.reason, 0) for dropped in model.dropped)
    copies = (copy for replica in assembly.replicas for copy in replica.copies)
    whole = chain.from_iterable(assembly.whole.values())
    taken = chain(whole, copies, (copy for _, copy, _ in model.copies))
    # What is in the files that were opened, and in the optimizer files, is among what the format has dropped.
    known = {str(path.relative_to(model.path)) for path in model.named}
    for name in unused_files(model.path, taken):
        if name not in known and not is_optimizer_file(name):
            yield NotCompared(name, "no parameter is in it", 0)


def _beside(root: Path, folder: Path) -> Iterator[NotCompared]:
    """What is in the root that was given, outside the checkpoint's own folder."""
    files, others = files_beside(root, folder)
    yield from (NotCompared(str(path.relative_to(root)), "beside the checkpoint's folder", 0) for path in files)
    yield from (NotCompared(name, _OTHER, 0) for name in others)


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
        return Side(report.path, report.what, "stored", tensors, not_compared=[_VALUES])
    with given.naming_its_own():
        inspected = inspect_folder(path, given)
    report, tensors = inspected.report, inspected.stored()
    flat = FlatParameters() if inspected.flat is None else inspected.flat()
    # Two models whose parameters have other shapes have not the same parameters, even if the flat numbers are the same.
    parts = {
        f"{name} (part of {list(flat.shapes[name])})" if name in flat.shapes else name: part
        for name, part in flat.parts.items()
    }
    tensors, folder = tensors | parts, Path(report.path)
    files = [*checkpoint_files(folder), *inspected.beside]
    rest, broken = rest_of(folder, files, [*tensors.values(), *inspected.sources, *flat.whole])
    return _stored_side(report, tensors | rest, broken, inspected.elsewhere)


def _by_file(path: Path, given: Given) -> Side:
    """A side with the files of a checkpoint's own folder, under file names and the names in the files."""
    with given.naming_its_own():
        inspected = inspect_folder(path, given)
    report, folder = inspected.report, Path(inspected.report.path)
    tensors, broken = rest_of(folder, [*checkpoint_files(folder), *inspected.beside], ())
    return _stored_side(report, tensors, broken, inspected.elsewhere)


def _everything(path: Path, given: Given) -> Side:
    """A side with all files below a folder, under file names and the names in the files, whatever they are."""
    if not path.is_dir():
        return _stored(path, given)
    with given.naming_its_own():
        report = inspect_folder(path, given).report
    tensors, broken = rest_of(path, all_files(path), ())
    return _stored_side(report, tensors, broken, ())


def _stored_side(
    report: InspectionReport, tensors: dict[str, LazyTensor], broken: Sequence[NotCompared], elsewhere: Iterable[str]
) -> Side:
    """A folder's side by stored names, with what is broken or missing in it, and the checkpoints that are elsewhere."""
    missing = _missing(report, {each.name for each in broken})
    others = (NotCompared(name, _OTHER, 0) for name in elsewhere)
    return Side(report.path, report.what, "stored", tensors, not_compared=[*broken, *missing, *others, _VALUES])


def _missing(report: InspectionReport, broken: set[str]) -> Iterator[NotCompared]:
    """What a folder lacks by its own account, such as a shard that its index names."""
    for finding in report.findings:
        where = finding.where or report.path
        if finding.exit_code != BROKEN or finding.what.startswith(UNSAFE) or any(where.endswith(n) for n in broken):
            continue
        yield NotCompared(where, finding.what, BROKEN)
