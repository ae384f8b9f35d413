"""What part of Megatron's model each layer file is, and whether one is missing.

A layer file's number depends on fork, date, MoE and tying, so its role is read from its keys. The numbers are still
worth something: they must be one of the known numberings without a gap, or a layer is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.formats.common.faults import COPY_AGAIN, REMOVE_OTHERS, Faults, listed
from streamconv.formats.deepspeed.evidence import BIGSCIENCE, DEEPSPEEDAI
from streamconv.models.parameter import Section

__all__ = ["check_roles", "is_megatron", "numbered_by", "role_of"]

# (first block - embedding, final norm - last block, index of the embedding) -> who numbers so, and in words.
_NUMBERINGS = {
    (2, 2, 1): (BIGSCIENCE, "bigscience's fork, or deepspeedai's before 2023-07"),
    (1, 1, 1): (DEEPSPEEDAI, "deepspeedai's fork since 2023-07"),
    (1, 2, 1): (DEEPSPEEDAI, "deepspeedai's fork with MoE (2024-04)"),
}
_UNKNOWN = (None, "an unknown fork")
# With ``input_layernorm``; ``self_attn`` is transformers'.
_IN_A_BLOCK = ("self_attention.", "mlp.dense_", "mlp.deepspeed_moe.")


def is_megatron(layers: Iterable[Collection[str]]) -> bool:
    """Whether some layer is a transformer layer of Megatron's: users write pipelines of their own modules too, whose
    layers may be anything [``deepspeed/runtime/pipe/module.py:PipelineModule``].
    """
    return any(role_of(keys) is Section.LAYER for keys in layers)


def role_of(keys: Collection[str]) -> Section | None:
    """What part of Megatron's model a layer file with such tensors is; None if it is none."""
    if "word_embeddings.weight" in keys:
        return Section.EMBEDDING
    if "lm_head.weight" in keys:
        return Section.HEAD
    if "input_layernorm.weight" in keys and any(key.startswith(_IN_A_BLOCK) for key in keys):
        return Section.LAYER
    return Section.FINAL_NORM if keys and set(keys) <= {"weight", "bias"} else None


def check_roles(
    folder: Path,
    layers: Mapping[int, tuple[Path, Collection[str]]],
    roles: Mapping[int, Section | None],
    num_layers: int | None,
    faults: Faults,
) -> None:
    """A model has one embedding, one final norm, at most one head, and all its transformer layers.

    Args:
        folder: for messages.
        layers: a file of each layer, and the layer's keys.
        roles: the role of each layer by its number, in order.
        num_layers: how many transformer layers the training arguments count, None if unknown.
        faults: what becomes of a fault.

    Raises:
        DamagedError: ``faults`` is strict, and one is missing or there twice, or a layer's file has no tensor.
        UnsupportedError: ``faults`` is strict, and a layer is of no role that is known.
    """
    _check_known([layers[index] for index, role in roles.items() if role is None], faults)
    by_role = {section: [index for index, role in roles.items() if role is section] for section in Section}
    embeddings, norms, heads = (by_role[s] for s in (Section.EMBEDDING, Section.FINAL_NORM, Section.HEAD))
    for what, found in (
        ("word embedding: layer_01-model_*-model_states.pt", embeddings),
        ("transformer layer", by_role[Section.LAYER]),
        ("final norm, the last of the layer files but for a head", norms),
    ):
        if not found:
            faults.note(DamagedError(f"no file has a {what}", where=folder, remedy=COPY_AGAIN))
    if max(len(embeddings), len(norms), len(heads)) > 1:
        words = (
            f"{len(embeddings)} embeddings, {len(norms)} final norms and {len(heads)} heads: a model has one of each"
        )
        faults.note(DamagedError(words, where=folder, remedy=REMOVE_OTHERS))
    elif embeddings and norms and by_role[Section.LAYER]:
        _check_numbers(folder, embeddings[0], by_role[Section.LAYER], norms[0], num_layers, faults)


def _check_known(layers: Iterable[tuple[Path, Collection[str]]], faults: Faults) -> None:
    """Layers of no role: of another model, or of none."""
    for path, keys in layers:
        kind = UnsupportedError if keys else DamagedError
        words = ", ".join(sorted(keys)[:6]) or "(none)"
        faults.note(kind(f"a layer file of unknown role, with keys {words}", where=path))


def _check_numbers(
    folder: Path, embedding: int, blocks: Sequence[int], norm: int, num_layers: int | None, faults: Faults
) -> None:
    """The numbers must be one of the known numberings without a gap, or confirmed by the arguments."""
    numbering = (blocks[0] - embedding, norm - blocks[-1], embedding)
    gaps = [range(low + 1, high) for low, high in pairwise((embedding, *blocks, norm))]
    has_gap = any(gaps[1:-1])
    # A fork may number otherwise; then the arguments must confirm that no layer is missing at either end.
    if not has_gap and num_layers == len(blocks):
        return
    if not has_gap and num_layers is None and numbering in _NUMBERINGS:
        return
    lost = None if num_layers is None else num_layers - len(blocks)
    said = "" if num_layers is None else f"args say {num_layers} layers, {len(blocks)} are there; "
    if lost != sum(map(_length, gaps)):
        # Forks leave out the number of a layer without parameters, right behind the embedding and before the norm.
        gaps = [gaps[0][1:], *gaps[1:-1], gaps[-1][:-1]]
    names = (f"layer_{index:02d}" for gap in gaps for index in gap)
    missing = sum(map(_length, gaps))
    which = listed(names, missing) + (" is missing" if missing == 1 else " are missing")
    if not missing:
        which = "transformer layers are missing" if lost is None or lost > 0 else "there are more than args say"
    faults.note(
        DamagedError(
            f"{said}{which}: embedding is file {embedding}, transformer layers {blocks[0]} to {blocks[-1]}, final norm "
            f"{norm}",
            where=folder,
            remedy=COPY_AGAIN if lost is None or lost >= 0 else REMOVE_OTHERS,
        )
    )


def _length(gap: range) -> int:
    """``len`` holds no more than a machine word."""
    return max(0, gap.stop - gap.start)


def numbered_by(embedding: int, first_block: int, last_block: int, norm: int) -> tuple[str | None, str]:
    """Who numbers layer files so: :data:`BIGSCIENCE` or :data:`DEEPSPEEDAI`, None if neither; and in words."""
    return _NUMBERINGS.get((first_block - embedding, norm - last_block, embedding), _UNKNOWN)
