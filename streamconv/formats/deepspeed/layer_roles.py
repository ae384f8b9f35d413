"""Which part of Megatron's model each layer file holds, and whether a file is missing.

A layer file's number depends on fork, date, MoE and tying, so its role is read from its keys. The numbers still
show a missing layer: without a gap they follow one of the known numberings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.formats.common.faults import COPY_AGAIN, REMOVE_OTHERS, Faults, listed
from streamconv.formats.deepspeed.options import BIGSCIENCE, DEEPSPEEDAI
from streamconv.models.parameter import Section

__all__ = ["check_roles", "is_megatron", "is_neox", "numbered_by", "role_of"]

# (first block - embedding, final norm - last block, index of the embedding) -> the fork, and its description.
_NUMBERINGS = {
    (2, 2, 1): (BIGSCIENCE, "bigscience's fork, or deepspeedai's before 2023-07"),
    (1, 1, 1): (DEEPSPEEDAI, "deepspeedai's fork since 2023-07"),
    (1, 2, 1): (DEEPSPEEDAI, "deepspeedai's fork with MoE (2024-04)"),
}
_UNKNOWN = (None, "an unknown fork")
# With ``input_layernorm``; ``self_attn`` is transformers'.
_IN_A_BLOCK = ("self_attention.", "mlp.dense_", "mlp.deepspeed_moe.")
# Modules of attention, Mamba and RWKV of GPT-NeoX; Megatron's blocks have self_attention instead.
_IN_A_NEOX_BLOCK = ("attention.query_key_value.", "attention.qkv.", "mixer.", "att.")
_AT_THE_END_OF_NEOX = ("norm.", "final_linear.", "rm_linear.")


def is_megatron(layers: Iterable[Collection[str]]) -> bool:
    """Whether some layer is a transformer layer of Megatron's. Pipelines of users' own modules may have any layers
    [``deepspeed/runtime/pipe/module.py:PipelineModule``].
    """
    return any(role_of(keys) is Section.LAYER for keys in layers)


def is_neox(layers: Iterable[Collection[str]]) -> bool:
    """Whether layers are GPT-NeoX's, with any mechanism: at least two of its three kinds are there; one may be missing.

    Users' own pipelines may have one of these kinds (transformers' GPT-NeoX has the blocks), and bare modules.
    """
    key_sets = [set(keys) for keys in layers]
    if any(keys and keys <= {"weight", "bias"} for keys in key_sets):
        return False
    kinds = (
        any("word_embeddings.weight" in keys for keys in key_sets),
        any(key.startswith(_IN_A_NEOX_BLOCK) for keys in key_sets for key in keys),
        any(keys and all(key.startswith(_AT_THE_END_OF_NEOX) for key in keys) for keys in key_sets),
    )
    return sum(kinds) > 1


def role_of(keys: Collection[str]) -> Section | None:
    """The part of Megatron's model that a layer file with these keys holds; None if unknown."""
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
    """Check that there are one embedding, one final norm, at most one head, and all transformer layers.

    Args:
        folder: for messages.
        layers: a file of each layer, and the layer's keys.
        roles: the role of each layer by its number, in order.
        num_layers: how many transformer layers the training arguments count, None if unknown.
        faults: raises or collects the faults.

    Raises:
        DamagedError: ``faults`` is strict, and a part is missing or there twice, or a layer's file has no tensor.
        UnsupportedError: ``faults`` is strict, and the role of a layer is unknown.
    """
    _check_known([layers[index] for index, role in roles.items() if role is None], faults)
    by_role = {section: [index for index, role in roles.items() if role is section] for section in Section}
    embeddings, norms, heads = (by_role[s] for s in (Section.EMBEDDING, Section.FINAL_NORM, Section.HEAD))
    for what, files in (
        ("word embedding: layer_01-model_*-model_states.pt", embeddings),
        ("transformer layer", by_role[Section.LAYER]),
        ("final norm, the last of the layer files but for a head", norms),
    ):
        if not files:
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
    """Check that the numbers have no gap, and follow a known numbering or agree with the arguments."""
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
        # A layer without parameters has a number and no file, right after the embedding and right before the norm.
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
    """The length of a range; ``len`` raises OverflowError for one beyond a machine word."""
    return max(0, gap.stop - gap.start)


def numbered_by(embedding: int, first_block: int, last_block: int, norm: int) -> tuple[str | None, str]:
    """The fork that numbers layer files so, :data:`BIGSCIENCE` or :data:`DEEPSPEEDAI` or None, and its description."""
    return _NUMBERINGS.get((first_block - embedding, norm - last_block, embedding), _UNKNOWN)
