"""Make whole, unfused parameters from shards, and record what is left out and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from streamconv.core.lazy import LazyTensor, Piece, Storage, View, concat, mean
from streamconv.core.replica import Replica
from streamconv.core.tiling import Box
from streamconv.formats.source import Dropped, StoredModel
from streamconv.models.family import ModelFamily
from streamconv.models.fused import gather
from streamconv.models.parameter import ModelSizes, ParameterId
from streamconv.planning.vocabulary import VocabularyPlan, repad

__all__ = ["Assembly", "assemble"]


@dataclass(slots=True)
class Assembly:
    """The canonical parameters of a model.

    ``replicas`` are copies to compare, ``sources`` all stored tensors by name, ``left_out`` the boxes of them that are
    not used (None for all of a tensor), and ``dropped`` the reasons.
    """

    whole: dict[ParameterId, tuple[LazyTensor, ...]]
    replicas: list[Replica]
    sources: dict[str, LazyTensor]
    left_out: dict[str, list[Box] | None]
    dropped: list[Dropped]


def assemble(
    model: StoredModel,
    family: ModelFamily,
    sizes: ModelSizes,
    vocabulary: VocabularyPlan,
    replicated: str,
    left: Collection[str] = (),
) -> Assembly:
    """Join a model's shards to whole, unfused parameters.

    Args:
        model: what is stored.
        family: its parameters.
        sizes: its sizes.
        vocabulary: the rows of the vocabulary to keep.
        replicated: which copy of a replicated parameter is used, ``first``, ``mean`` or ``fail``.
        left: keys of parameters to leave out; the caller records the reason.
    """
    result = Assembly({}, [], {}, {}, [])
    copies = 0
    for stored, shards in model.tensors.items():
        parameter, name = family.parameter(stored), stored.name
        for rank, tensor in enumerate(shards):
            stored_tensors = _stored(f"{name} of rank {rank}", tensor)
            result.sources |= stored_tensors
            result.left_out |= dict.fromkeys(stored_tensors) if stored.key in left else {}
        if stored.key in left:
            continue
        if parameter.axis is None and not (parameter.summed and model.orders.shares):
            chosen, spare = _chosen_copy(shards, replicated)
            if len(shards) > 1:
                result.replicas.append(Replica(name, shards))
            result.left_out |= {f"{name} of rank {rank}": None for rank in spare}
            copies += sum(shards[rank].nbytes for rank in spare)
            shards = (chosen,)
        result.whole[stored] = gather(parameter, shards, sizes, model.orders)
        if parameter.is_vocabulary and not vocabulary.is_verbatim:
            _drop_padding(result, stored, vocabulary)
    if copies:
        ranks = f"ranks 1 to {model.tp - 1}" if model.tp > 2 else "rank 1"
        reason = "replicated: compared with rank 0, whose copy is written"
        result.dropped.append(Dropped(f"copies of {len(result.replicas)} parameters on {ranks}", copies, reason))
    return result


def _stored(name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """The stored tensors that a shard is joined from: usually itself. Fused rows may be stored in several; consecutive
    rows of one storage are one of them. Parts of a flat tensor, which may begin inside a row, are runs of elements.
    """
    if len(tensor.pieces) < 2:
        return {name: tensor}
    by_storage: dict[Storage, list[Piece]] = {}
    for piece in sorted(tensor.pieces, key=lambda piece: piece.views[0].offset):
        by_storage.setdefault(piece.views[0].storage, []).append(piece)
    runs = (run for pieces in by_storage.values() for run in _runs(pieces))
    return {f"{name}, part {number}": run for number, run in enumerate(runs)}


def _runs(pieces: Sequence[Piece]) -> Iterator[LazyTensor]:
    """The stored tensors that pieces of one storage are, in the order of their offsets."""
    if len({piece.shape[1:] for piece in pieces}) == 1:
        rows = concat([LazyTensor.stored(piece.views[0], piece.shape) for piece in pieces], 0).coalesced()
        if len({piece.views[0].strides for piece in pieces}) == 1:
            yield from (LazyTensor.stored(run.views[0], run.shape) for run in rows.pieces)
            return
    view = pieces[0].views[0]
    spans = [piece.views[0].span(piece.shape) for piece in pieces]
    first, last = min(start for start, _ in spans), max(start + nbytes for start, nbytes in spans)
    numel = (last - first) // view.dtype.itemsize
    if numel == sum(piece.numel for piece in pieces):
        yield LazyTensor.stored(View(view.storage, view.dtype, first // view.dtype.itemsize, (1,)), (numel,))
        return
    yield from (LazyTensor.stored(piece.views[0], piece.shape) for piece in pieces)


def _chosen_copy(shards: Sequence[LazyTensor], policy: str) -> tuple[LazyTensor, range]:
    """The tensor that represents all copies, and the ranks whose copies are not read for it."""
    if policy == "mean" and len(shards) > 1:
        return mean(shards), range(0)
    return shards[0], range(1, len(shards))


def _drop_padding(result: Assembly, parameter: ParameterId, vocabulary: VocabularyPlan) -> None:
    (whole,), name = result.whole[parameter], parameter.name
    true, stored = vocabulary.true or 0, vocabulary.stored
    row = whole.nbytes // stored
    if stored > true:
        reason = "padding: the target has none"
        if vocabulary.padded > true:
            reason = f"padding: the target pads {true} true rows to {vocabulary.padded} with copies of the last"
        result.dropped.append(Dropped(f"rows {true} to {stored - 1} of {name}", (stored - true) * row, reason))
    mine = [(source, tensor) for source, tensor in result.sources.items() if source.startswith(f"{name} of rank ")]
    for piece in whole.slice(0, true, stored).pieces:
        source, tensor = next(candidate for candidate in mine if _holds(candidate[1], piece))
        first = (piece.views[0].offset - tensor.pieces[0].views[0].offset) // piece.views[0].strides[0]
        padding: Box = ((first, first + piece.shape[0]), (0, whole.shape[1]))
        result.left_out[source] = [padding] if piece.shape[0] < tensor.shape[0] else None
    result.whole[parameter] = (repad(whole, vocabulary),)


def _holds(tensor: LazyTensor, piece: Piece) -> bool:
    """Whether a stored tensor contains the rows of a piece."""
    if not tensor.pieces:
        return False
    stored, view = tensor.pieces[0].views[0], piece.views[0]
    return stored.storage == view.storage and 0 <= view.offset - stored.offset < tensor.shape[0] * stored.strides[0]
