"""What a model family is: a table of parameters, and how each is cut over tensor-parallel ranks.

One row serves both directions. ``gather`` makes the canonical tensors (whole, unfused) of a parameter from its
shards, and ``shard`` cuts one rank's tensor from the canonical ones. Fused rows (query, key, value) are taken apart
before ranks are joined, and put together after they are cut, because a shard of a fused tensor is not a slice of the
fused whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from streamconv.lazy import LazyTensor, concat

__all__ = ["ModelFamily", "ModelSizes", "Parameter", "QkvLayout", "Section", "gather", "shard"]


class Section(str, Enum):
    """The part of a transformer that a parameter belongs to."""

    EMBEDDING = "embedding"
    LAYER = "layer"
    FINAL_NORM = "final_norm"
    HEAD = "head"


class QkvLayout(str, Enum):
    """The order of rows in one rank's fused ``query_key_value``, for ``np`` heads of ``hn`` rows on that rank.

    ``interleaved`` is ``[np, 3, hn]`` (Megatron checkpoint_version 2 and above). ``blocks`` is ``[3, np, hn]``, which
    Megatron-DeepSpeed writes since commit 676a482c (2024-12), under the same checkpoint_version 3.0.
    """

    INTERLEAVED = "interleaved"
    BLOCKS = "blocks"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of a family's table.

    ``key`` is the name inside its section, as Megatron writes it. ``shape`` names sizes of :class:`ModelSizes`.
    ``axis`` is the tensor-parallel axis, None if every rank holds a copy. ``parts`` are fused on axis 0, head by
    head.
    """

    section: Section
    key: str
    shape: tuple[str, ...]
    axis: int | None = None
    parts: tuple[str, ...] = ()
    optional: bool = False

    @property
    def is_vocabulary(self) -> bool:
        """Whether its rows are tokens, padded for the tensor-parallel size."""
        return self.shape[0] == "vocab"

    def name(self, layer: int | None = None) -> str:
        """The canonical name: ``layers.3.mlp.dense_h_to_4h.weight``, ``final_layernorm.weight``."""
        if self.section is Section.LAYER:
            return f"layers.{layer}.{self.key}"
        return f"final_layernorm.{self.key}" if self.section is Section.FINAL_NORM else self.key


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a model. ``vocab`` counts the rows that are stored, padding included; heads may be unknown."""

    num_layers: int
    hidden: int
    ffn: int
    vocab: int
    positions: int | None
    heads: int | None
    head_dim: int | None

    def __str__(self) -> str:
        return f"hidden {self.hidden}, ffn {self.ffn}, {self.heads or 'unknown'} heads, {self.vocab} vocabulary rows"

    @property
    def qkv(self) -> int:
        """Rows of the whole fused query_key_value."""
        return 3 * self.hidden if self.heads is None or self.head_dim is None else 3 * self.heads * self.head_dim

    @property
    def attention(self) -> int:
        """Columns of the whole attention output projection."""
        return self.qkv // 3

    def shape_of(self, parameter: Parameter) -> tuple[int, ...]:
        """The whole, fused shape of a parameter."""
        return tuple(int(getattr(self, dim)) for dim in parameter.shape)


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family: its name, what runs it, and its parameters.

    ``positions`` is how it encodes position (``learned``, ``alibi``); ``runs_in`` says which legacy Megatron can run
    it.
    """

    name: str
    title: str
    positions: str
    parameters: tuple[Parameter, ...]
    runs_in: str
    rows: Mapping[tuple[Section, str], Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", {(p.section, p.key): p for p in self.parameters})

    def keys(self, section: Section) -> set[str]:
        """The keys that a section must have."""
        return {p.key for p in self.parameters if p.section is section and not p.optional}

    def parameter(self, section: Section, key: str) -> Parameter:
        """The row for a stored key."""
        return self.rows[section, key]

    def refusal(self, args: dict[str, Any]) -> str | None:
        """Why this family would mistranslate a model trained with ``args``, or None."""
        return next((reason for reason in _refusals(self, args) if reason), None)


# megatron/enums.py of bigscience-workshop/Megatron-DeepSpeed: class PositionEmbeddingType.
_POSITION_ENUM = {1: "rotary", 2: "learned", 3: "alibi"}


def _refusals(family: ModelFamily, args: dict[str, Any]) -> Sequence[str | None]:
    experts = args.get("num_experts")
    most = max(experts, default=1) if isinstance(experts, list) else experts
    heads, groups = args.get("num_attention_heads"), args.get("num_key_value_heads")
    kind = getattr(args.get("position_embedding_type"), "args", None)
    named = _POSITION_ENUM.get(kind[0]) if isinstance(kind, tuple) and kind else None
    return (
        "a mixture of experts (MoE)" if isinstance(most, int) and most > 1 else None,
        "a gated linear unit (GLU: swiglu)" if args.get("swiglu") else None,
        f"a gated linear unit (GLU: {args['glu_activation']})" if args.get("glu_activation") else None,
        "RMSNorm (Llama)" if args.get("normalization") not in (None, "layernorm", "LayerNorm") else None,
        "rotary positions" if args.get("use_rotary_position_embeddings") else None,
        f"grouped-query attention ({heads} heads, {groups} groups)" if groups not in (None, heads) else None,
        f"{named} positions" if named not in (None, family.positions) else None,
    )


def gather(
    parameter: Parameter, shards: Sequence[LazyTensor], sizes: ModelSizes, qkv: QkvLayout
) -> tuple[LazyTensor, ...]:
    """The canonical tensors of a parameter from its tensor-parallel shards: one, or one a fused part.

    A fused part has shape ``(heads, head_dim, ..)``, any other tensor the parameter's own. A replicated parameter is
    given as one shard. Without the number of heads, fused rows are joined as they stand (interleaved rows only).
    """
    if not parameter.parts or sizes.head_dim is None:
        whole = shards[0] if parameter.axis is None else concat(shards, parameter.axis)
        return (whole.coalesced(),)
    return tuple(
        concat([_part(shard, index, len(parameter.parts), sizes.head_dim, qkv) for shard in shards], 0)
        for index in range(len(parameter.parts))
    )


def _part(shard: LazyTensor, index: int, count: int, head_dim: int, qkv: QkvLayout) -> LazyTensor:
    heads = shard.shape[0] // (count * head_dim)
    if qkv is QkvLayout.BLOCKS:
        rows = heads * head_dim
        return shard.slice(0, index * rows, (index + 1) * rows).unflatten(0, heads, head_dim)
    by_head = shard.unflatten(0, heads, count * head_dim)
    return by_head.slice(1, index * head_dim, (index + 1) * head_dim)


def shard(parameter: Parameter, whole: Sequence[LazyTensor], tp: int, rank: int) -> LazyTensor:
    """One rank's tensor of a parameter, fused rows interleaved by head, from its canonical tensors."""
    if len(whole) > 1:
        heads = whole[0].shape[0] // tp
        mine = [part.slice(0, rank * heads, (rank + 1) * heads) for part in whole]
        return concat(mine, 1).coalesced().flatten(0).coalesced()
    (tensor,) = whole
    if parameter.axis is None:
        return tensor
    size = tensor.shape[parameter.axis] // tp
    return tensor.slice(parameter.axis, rank * size, (rank + 1) * size).coalesced()
