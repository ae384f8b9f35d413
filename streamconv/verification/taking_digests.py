"""Take digests of a checkpoint's parameters.

A digest is that of a parameter's bytes in row-major order of its canonical shape, little-endian, without padding of the
vocabulary. Biases of linear layers that are zero in every element of every layer are left out: they change nothing, and
some layouts must have them where others cannot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import AmbiguousError, DamagedError, SourceError, UsageError
from streamconv.core.lazy import LazyTensor
from streamconv.core.options import Given
from streamconv.execution.in_order import OrderedSettings, fit_in_order, read_in_order
from streamconv.formats.common.layer_numbers import place_of
from streamconv.inspection.inspect import inspect
from streamconv.inspection.options import InspectOptions
from streamconv.inspection.report import BROKEN
from streamconv.io.checksums import SourceChecksums
from streamconv.models.biases import BY_ENTRY
from streamconv.models.parameter import QKV
from streamconv.values.options import ReadingOptions
from streamconv.values.replicas import compare_replicas
from streamconv.verification.digests import ALGORITHMS, CANONICAL, Digests, TensorDigest
from streamconv.verification.side import Side
from streamconv.verification.sides import open_side

__all__ = ["digest", "is_linear_bias", "taken", "with_flat_groups", "without_idle_biases"]

Progress = Callable[[int, int], None]
_LINEAR_BIASES = frozenset(key for pair in BY_ENTRY.values() for key in pair)
_ZEROS = bytes(1 << 20)


def digest(
    path: Path,
    given: Given,
    reading: ReadingOptions,
    *,
    algorithm: str = "xxh3-128",
    replicated: str = "first",
    progress: Progress | None = None,
) -> Digests:
    """The digests of a checkpoint; see :func:`streamconv.digest`.

    Args:
        path: a checkpoint file or folder.
        given: the user's options for it.
        reading: how values are read.
        algorithm: one of :data:`ALGORITHMS`.
        replicated: which copy of a replicated parameter counts; ``fail`` wants them equal.
        progress: called with (bytes done, bytes in all).

    Raises:
        SourceError: it is not there, or not a checkpoint.
        AmbiguousError: the true size of the vocabulary or the number of heads is unknown.
        DamagedError: it is broken.
        DifferenceError: copies differ, and ``replicated`` is ``fail``.
        MemoryBudgetError: the budget is too small.
    """
    side = open_side(path, given, "first" if replicated == "fail" else replicated)
    canonical = side.names == CANONICAL
    if not canonical:
        _refuse_broken(path, given, reading)
    rows = _true_rows(side) if canonical else None
    tensors = with_flat_groups(side, rows)
    if not any(tensor.numel for tensor in tensors.values()):
        raise SourceError("there is nothing to digest: no tensor has an element", where=path)
    settings = fit_in_order(reading)
    drifts = compare_replicas(side.replicas, replicated, settings.engine.io, settings.engine.block)
    sources = SourceChecksums()
    every = taken(tensors, algorithm, settings, sources, progress)
    kept, left_out = without_idle_biases(every, algorithm) if canonical else (every, [])
    return Digests(
        algorithm=algorithm,
        names=side.names,
        tensors=dict(sorted(kept.items())),
        vocabulary=rows,
        heads=side.heads,
        path=side.path,
        what=side.what,
        nbytes=sum(tensor.nbytes for tensor in tensors.values()),
        records=sources.verdict(),
        drifts=drifts,
        left_out=left_out,
        notes=list(side.notes),
    )


def _refuse_broken(path: Path, given: Given, reading: ReadingOptions) -> None:
    """Raise if a file is broken or missing: under stored names a folder is opened without it."""
    for finding in inspect(path, given, InspectOptions(), reading).findings:
        if finding.exit_code == BROKEN:
            raise DamagedError(finding.what, where=finding.where, remedy=finding.remedy)


def _true_rows(side: Side) -> int:
    if side.heads is None:
        raise AmbiguousError(
            "the number of attention heads is unknown, and query, key and value are digested apart",
            where=side.path,
            remedy="say --num-heads N",
        )
    stored = side.tensors[min(side.vocabulary)].shape[0]
    if side.vocab_size is None:
        raise AmbiguousError(
            f"the true vocabulary size is unknown: {stored} rows are stored, and padding is no part of a digest",
            where=side.path,
            remedy="say --vocab-size N",
        )
    if side.vocab_size > stored:
        what = f"a vocabulary of {side.vocab_size} true rows: {stored} rows are stored"
        raise UsageError(what, where=side.path, remedy="check --vocab-size")
    return side.vocab_size


def with_flat_groups(side: Side, rows: int | None) -> dict[str, LazyTensor]:
    """A side's tensors as they are digested: queries, keys and values with the rows of all groups on one axis, the
    vocabulary cut to ``rows``, as far as it has so many.
    """
    return dict(_flat(side, rows))


def _flat(side: Side, rows: int | None) -> Iterator[tuple[str, LazyTensor]]:
    for name, tensor in side.tensors.items():
        if rows is not None and name in side.vocabulary:
            yield name, tensor.slice(0, 0, min(rows, tensor.shape[0]))
        elif side.names == CANONICAL and name.rpartition(".")[2] in QKV:
            yield name, tensor.flatten(0).coalesced()
        else:
            yield name, tensor


def taken(
    tensors: Mapping[str, LazyTensor],
    algorithm: str,
    settings: OrderedSettings,
    sources: SourceChecksums,
    progress: Progress | None = None,
) -> dict[str, TensorDigest]:
    """The digest of each tensor by its name.

    Raises:
        DamagedError, StorageError: see :func:`streamconv.execution.in_order.read_in_order`.
    """
    new = ALGORITHMS[algorithm]
    found: dict[str, TensorDigest] = {
        name: TensorDigest(str(tensor.dtype), tensor.shape, new().hexdigest()) for name, tensor in tensors.items()
    }
    current, running = "", new()

    def finish() -> None:
        if current:
            found[current] = replace(found[current], digest=running.hexdigest())

    for name, data in read_in_order(tensors, settings, sources, progress):
        if name != current:
            finish()
            current, running = name, new()
        running.update(data)
    finish()
    return found


def is_linear_bias(name: str) -> bool:
    """Whether a canonical name is that of a bias of a linear layer, or of a part of one."""
    return not _LINEAR_BIASES.isdisjoint(_keys(name))


def without_idle_biases(
    digests: Mapping[str, TensorDigest], algorithm: str
) -> tuple[dict[str, TensorDigest], list[str]]:
    """The digests without those of biases of linear layers that are zero in every element of every layer, and their
    names without the layer.
    """
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in digests:
        for key in _LINEAR_BIASES.intersection(_keys(name)):
            by_key[key].append(name)
    idle = {key for key, names in by_key.items() if all(_is_zero(digests[name], algorithm) for name in names)}
    left = {name for key in idle for name in by_key[key]}
    return {name: found for name, found in digests.items() if name not in left}, sorted(idle)


def _keys(name: str) -> tuple[str, str]:
    """A parameter's name without its layer, and that without the part of a fused one."""
    key = place_of(name)[1]
    return key, key.rpartition(".")[0]


def _is_zero(found: TensorDigest, algorithm: str) -> bool:
    return found.digest == _digest_of_zeros(DTYPES[found.dtype].itemsize * prod(found.shape), algorithm)


@cache
def _digest_of_zeros(nbytes: int, algorithm: str) -> str:
    running = ALGORITHMS[algorithm]()
    for start in range(0, nbytes, len(_ZEROS)):
        running.update(_ZEROS[: nbytes - start])
    return running.hexdigest()
