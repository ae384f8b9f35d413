"""Hold a checkpoint against digests that were taken of another one, which need not be there any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamconv.core.errors import UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.options import Given
from streamconv.core.result import Result
from streamconv.execution.in_order import fit_in_order
from streamconv.io.checksums import SourceChecksums
from streamconv.values.options import ReadingOptions
from streamconv.values.replicas import Drift, compare_replicas
from streamconv.verification.digests import CANONICAL, Digests, load_digests
from streamconv.verification.side import Side
from streamconv.verification.sides import open_side
from streamconv.verification.taking_digests import is_linear_bias, taken, with_flat_groups, without_idle_biases

__all__ = ["DigestComparison", "Incomparable", "compare_with_digests"]


@dataclass(frozen=True, slots=True)
class Incomparable:
    """A parameter whose digest says nothing about the one of the same name, and why."""

    name: str
    why: str


@dataclass(slots=True, repr=False)
class DigestComparison(Result):
    """A checkpoint held against digests.

    ``compared`` counts the parameters whose digests were compared, ``different`` names those that are not the same, in
    values or in shape. ``missing`` are in the digests alone, ``extra`` in the checkpoint alone; ``incomparable`` are in
    both, but cannot be held against each other.
    """

    digests: Digests
    side: Side
    compared: int = 0
    nbytes: int = 0
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    incomparable: list[Incomparable] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether a parameter differs, is missing, or is one too many."""
        return bool(self.different or self.missing or self.extra)


def compare_with_digests(
    dst: Path,
    path: Path,
    given: Given,
    reading: ReadingOptions,
    progress: Callable[[int, int], None] | None = None,
) -> DigestComparison:
    """Hold a checkpoint against a file of digests.

    Args:
        dst: the checkpoint.
        path: the file.
        given: the user's options for the checkpoint.
        reading: how values are read.
        progress: called with (bytes done, bytes in all).

    Raises:
        SourceError: one of them is not there.
        UnsupportedError: the digests are by canonical names, and the checkpoint is of no family that has them.
        AmbiguousError: the checkpoint needs an option to be understood.
        DamagedError: one of them is broken.
        MemoryBudgetError: the budget is too small.
    """
    digests = load_digests(path)
    side = _side(dst, digests, given)
    tensors = with_flat_groups(side, digests.vocabulary)
    result = DigestComparison(digests, side)
    wanted = dict(_to_compare(tensors, result))
    biases = {name: tensors[name] for name in result.extra if is_linear_bias(name)}
    settings = fit_in_order(reading)
    result.drifts = compare_replicas(side.replicas, "first", settings.engine.io, settings.engine.block)
    found = taken(wanted | biases, digests.algorithm, settings, SourceChecksums(), progress)
    kept, idle = without_idle_biases({name: found[name] for name in biases}, digests.algorithm)
    result.extra = [name for name in result.extra if name not in biases or name in kept]
    result.notes += [f"{key}: zero in every element of every layer, as if it were not stored" for key in idle]
    for name in wanted:
        if found[name].digest != digests.tensors[name].digest:
            _differs(name, result)
    unknown = {each.name for each in result.incomparable}
    result.compared = len(wanted.keys() - unknown)
    result.nbytes = sum(tensor.nbytes for name, tensor in wanted.items() if name not in unknown)
    return result


def _side(dst: Path, digests: Digests, given: Given) -> Side:
    if digests.names != CANONICAL:
        return open_side(dst, given, stored=True)
    side = open_side(dst, given)
    if side.names == CANONICAL and side.heads is None and digests.heads is not None:
        side = open_side(dst, given.plus(num_heads=digests.heads))
    if side.names != CANONICAL:
        raise UnsupportedError(
            f"the digests are by canonical names, and this checkpoint has none ({'; '.join(side.notes)})",
            where=dst,
            remedy="hold a checkpoint of a family that is translated against them",
        )
    return side


def _to_compare(tensors: dict[str, LazyTensor], result: DigestComparison) -> Iterator[tuple[str, LazyTensor]]:
    """The parameters whose digests can be compared; the others are entered in the result."""
    known = result.digests.tensors
    result.missing = [name for name in known if name not in tensors]
    result.extra = [name for name in tensors if name not in known]
    for name in (name for name in known if name in tensors):
        tensor, digest = tensors[name], known[name]
        if tensor.shape != digest.shape:
            shapes = f"shape {list(tensor.shape)}, the digest is of {list(digest.shape)}"
            _differs(name, result, f"{name}: {shapes}")
        elif str(tensor.dtype) != digest.dtype:
            why = f"{tensor.dtype}, and the digest is of the bytes of a {digest.dtype}"
            result.incomparable.append(Incomparable(name, why))
        else:
            yield name, tensor


def _differs(name: str, result: DigestComparison, *notes: str) -> None:
    """Enter a parameter whose digest is another one; if padding was digested as if it were true, nothing follows."""
    side, rows = result.side, result.digests.vocabulary
    if name in side.vocabulary and rows is not None and side.vocab_size is not None and side.vocab_size < rows:
        why = f"{side.vocab_size} true rows, and the digest is of {rows}: take it with --vocab-size {side.vocab_size}"
        result.incomparable.append(Incomparable(name, why))
    else:
        result.different.append(name)
        result.notes += notes
