"""The proof of a plan that keeps names: every stored element is written once, or left out by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from streamconv.core.coverage import Coverage, SourceIndex, prove
from streamconv.core.lazy import LazyTensor
from streamconv.core.low_rank import LowRank
from streamconv.core.tiling import Box
from streamconv.core.views import Storage
from streamconv.formats.named import NamedModel
from streamconv.planning.selection import Selection

__all__ = ["proof_of"]


def proof_of(model: NamedModel, chosen: Selection, updates: Mapping[str, LowRank]) -> Coverage:
    """Prove a plan, in numbers.

    Names that share a parameter write its elements again: such a tensor is that of the parameter, and counts once, as
    one that is taken if any of its names is.

    Args:
        model: the source.
        chosen: the tensors that are taken.
        updates: what is added to some of them: both thin matrices are read whole.

    Raises:
        CoverageError: an element is lost or repeated. It is a bug, found before the first write.
    """
    taken, left = _once(model.tensors, chosen)
    sources = dict(model.sources) or dict(_stored({**taken, **left}))
    # Views of one storage may overlap: what one of them reads, another one reads again.
    apart = set() if model.sources else set(_overlapping(sources))
    together = {name: tensor for name, tensor in sources.items() if name not in apart}
    index = SourceIndex(together)
    out: dict[str, list[Box] | None] = {name: list(boxes) for name, boxes in model.padding.items()}
    for name, tensor in left.items():
        for piece in tensor.pieces if name not in apart else ():
            for view in piece.views:
                where, boxes = index.find(piece, view)
                held = out.setdefault(where, [])
                if held is not None:
                    held += boxes
    for name, left_out in out.items():
        if left_out and _numel(left_out) == together[name].numel:
            out[name] = None
    proofs = [prove(together, out, [("the model", tensor) for name, tensor in taken.items() if name not in apart])]
    proofs += [prove({name: taken[name]}, {}, [(name, taken[name])]) for name in sorted(apart & taken.keys())]
    thin = [(name, half) for name, update in updates.items() for half in (update.left, update.right)]
    proofs += [
        prove(_stored_parts(half), {}, [(f"the update of {name}", half)]) for name, half in thin if name in chosen.taken
    ]
    return Coverage(
        sum(proof.consumed for proof in proofs),
        sum(proof.left_out for proof in proofs) + len(apart & left.keys()),
        sum(proof.written for proof in proofs) + len(chosen.taken) - len(taken),
    )


def _stored(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors, those that are joined from several places as their parts."""
    for name, tensor in tensors.items():
        if len(tensor.pieces) < 2:
            yield name, tensor
        else:
            yield from ((f"{name}, {part}", stored) for part, stored in _stored_parts(tensor).items())


def _stored_parts(tensor: LazyTensor) -> dict[str, LazyTensor]:
    """The stored views that a tensor is joined from."""
    parts = (LazyTensor.stored(view, piece.shape) for piece in tensor.pieces for view in piece.views)
    return {f"part {number}": part for number, part in enumerate(parts)}


def _once(tensors: Mapping[str, LazyTensor], chosen: Selection) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The tensors with other elements than all before them, those that are taken and those that are left out."""
    taken: dict[tuple[object, ...], str] = {}
    empty = [name for name, tensor in tensors.items() if not tensor.pieces and name in chosen.taken]
    for name in chosen.taken:
        taken.setdefault(tensors[name].pieces, name)
    left: dict[tuple[object, ...], str] = {}
    for name in chosen.left:
        if tensors[name].pieces and tensors[name].pieces not in taken:
            left.setdefault(tensors[name].pieces, name)
    first = [name for pieces, name in taken.items() if pieces] + empty
    return {name: tensors[name] for name in first}, {name: tensors[name] for name in left.values()}


def _overlapping(tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    """The names of tensors whose bytes reach into those of an earlier one."""
    spans: dict[Storage, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        for piece in tensor.pieces:
            for view in piece.views:
                start, nbytes = view.span(piece.shape)
                spans.setdefault(view.storage, []).append((start, start + nbytes, name))
    for each in spans.values():
        reach = -1
        for start, stop, name in sorted(each):
            if start < reach:
                yield name
            reach = max(reach, stop)


def _numel(boxes: Iterable[Box]) -> int:
    return sum(prod(stop - start for start, stop in box) for box in boxes)
