"""A parameter of a model: its key, its shape, and how it is cut over tensor-parallel ranks.

One row serves both directions, and every framework: a format says under which name and in which order of rows it
stores a parameter, never how the parameter is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

__all__ = ["GLU", "QKV", "WORDS", "Kind", "ModelSizes", "Parameter", "ParameterId", "Section"]

QKV = ("query", "key", "value")
GLU = ("gate", "up")


class Section(str, Enum):
    """The part of a transformer that a parameter belongs to."""

    EMBEDDING = "embedding"
    LAYER = "layer"
    FINAL_NORM = "final_norm"
    HEAD = "head"


class Kind(str, Enum):
    """What is stored of a parameter: its value as the model computes with it, or a part of the optimizer's state."""

    MODEL = "model"
    MASTER = "master"
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"


@dataclass(frozen=True, slots=True)
class ParameterId:
    """Which parameter of a model a tensor is.

    Attributes:
        section: the part of the model.
        layer: the transformer layer, from 0 through the whole model; -1 outside the layers.
        key: the name inside the section, as Megatron writes it: ``self_attention.dense.weight``.
        expert: the number of the expert, from 0 through the whole model; None if it belongs to no expert.
        kind: the parameter itself, or a part of its optimizer state.
    """

    section: Section
    layer: int
    key: str
    expert: int | None = None
    kind: Kind = Kind.MODEL

    @property
    def name(self) -> str:
        """The canonical name: ``layers.3.mlp.dense_h_to_4h.weight``, ``final_layernorm.weight``."""
        if self.section is Section.LAYER:
            expert = "" if self.expert is None else f"experts.{self.expert}."
            return f"layers.{self.layer}.{expert}{self.key}"
        return f"final_layernorm.{self.key}" if self.section is Section.FINAL_NORM else self.key

    def beside(self, key: str) -> ParameterId:
        """Another parameter of the same section, layer and expert."""
        return replace(self, key=key)


WORDS = ParameterId(Section.EMBEDDING, -1, "word_embeddings.weight")
"""The word embedding."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of a family's table.

    ``key`` is the name inside its section, as Megatron writes it. ``shape`` names sizes of :class:`ModelSizes`.
    ``axis`` is the tensor-parallel axis, None if every rank holds a copy. ``parts`` are fused on axis 0, :data:`QKV`
    or :data:`GLU`. A ``summed`` parameter is the sum over ranks in those checkpoints whose ranks hold shares of it, not
    copies. A model may lack one that is ``optional``.
    """

    section: Section
    key: str
    shape: tuple[str, ...]
    axis: int | None = None
    parts: tuple[str, ...] = ()
    optional: bool = False
    summed: bool = False

    @property
    def is_vocabulary(self) -> bool:
        """Whether its rows are tokens, padded for the tensor-parallel size."""
        return self.shape[0] == "vocab"

    @property
    def is_glu(self) -> bool:
        """Whether its rows are the two halves of a gated linear unit."""
        return self.parts == GLU

    def of(self, layer: int = -1) -> ParameterId:
        """The id of this parameter in a layer; -1 if it is outside the layers."""
        return ParameterId(self.section, layer, self.key)


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a model. ``vocab`` counts the rows that are stored, padding included; heads may be unknown, and with
    them ``groups`` (key and value heads) and ``head_dim``. ``gated`` says whether ``dense_h_to_4h`` has two halves,
    ``biases`` which entries of a configuration (``attention_bias``, ``mlp_bias``) the tensors show to be true.
    """

    num_layers: int
    hidden: int
    ffn: int
    vocab: int
    positions: int | None
    heads: int | None
    groups: int | None
    head_dim: int | None
    gated: bool = False
    biases: tuple[str, ...] = ()

    def __str__(self) -> str:
        heads = f"{self.heads or 'unknown'} heads"
        if self.groups != self.heads:
            heads += f" in {self.groups} groups"
        return f"hidden {self.hidden}, ffn {self.ffn}, {heads}, {self.vocab} vocabulary rows"

    @property
    def group_rows(self) -> tuple[int, int, int]:
        """Rows of the queries, the key and the value of one group; the number of heads must be known."""
        if self.heads is None or self.groups is None or self.head_dim is None:
            raise ValueError("the number of heads is unknown")
        return self.heads // self.groups * self.head_dim, self.head_dim, self.head_dim

    @property
    def qkv(self) -> int:
        """Rows of the whole fused query_key_value."""
        return 3 * self.hidden if self.groups is None else self.groups * sum(self.group_rows)

    @property
    def attention(self) -> int:
        """Columns of the whole attention output projection."""
        if self.heads is None or self.head_dim is None:
            return self.hidden
        return self.heads * self.head_dim

    @property
    def ffn_in(self) -> int:
        """Rows of the whole ``dense_h_to_4h``."""
        return 2 * self.ffn if self.gated else self.ffn

    def shape_of(self, parameter: Parameter) -> tuple[int, ...]:
        """The whole, fused shape of a parameter."""
        return tuple(int(getattr(self, dim)) for dim in parameter.shape)
