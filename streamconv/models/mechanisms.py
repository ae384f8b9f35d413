"""What transformer blocks are made of: one value for each mechanism.

A family states the set of its mechanisms, and every framework lists those that its model runs. A mechanism that is
stated and not listed is refused in its own words. So a new mechanism needs only a constant here: no framework mistakes
it for a similar one. The layout of bytes (fused rows, transposed matrices) is no mechanism.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = [
    "ALIBI",
    "BIASES",
    "EMBEDDING_NORM",
    "EXCLUSIVE",
    "GEGLU",
    "GROUPED_HEADS",
    "HEAD_NORMS",
    "HEAD_SIZE",
    "KNOWN",
    "LAYERNORM",
    "LEARNED",
    "NORMS_LESS_ONE",
    "NO_BIASES",
    "PARALLEL_RESIDUAL",
    "PARTIAL_ROTARY",
    "PLAIN_MLP",
    "QKV_BIASES",
    "RMSNORM",
    "ROTARY",
    "SCALED_EMBEDDING",
    "SWIGLU",
    "Mechanism",
    "check_exclusive",
    "in_words",
]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism: its name, as in Megatron's arguments where they have one, and the words that follow "has no"."""

    name: str
    words: str


ALIBI = Mechanism("alibi", "ALiBi")
LEARNED = Mechanism("learned", "learned positions")
ROTARY = Mechanism("rotary", "rotary positions")
PARTIAL_ROTARY = Mechanism("partial_rotary", "rotary positions in a part of each head")
"""Stated together with :data:`ROTARY`. The configuration says which part; it may be the whole head."""

LAYERNORM = Mechanism("layernorm", "LayerNorm")
RMSNORM = Mechanism("rmsnorm", "RMSNorm")
NORMS_LESS_ONE = Mechanism("norms_less_one", "norms stored less 1")
"""The norm multiplies by 1 + weight."""

PLAIN_MLP = Mechanism("plain", "MLP without a gate")
"""The configuration names its activation function."""

SWIGLU = Mechanism("swiglu", "gated unit with SiLU (SwiGLU)")
GEGLU = Mechanism("geglu", "gated unit with tanh GELU (GeGLU)")

BIASES = Mechanism("biases", "biases on all linear layers")
QKV_BIASES = Mechanism("qkv_biases", "biases on queries, keys and values alone")
NO_BIASES = Mechanism("no_biases", "linear layers without biases")

EMBEDDING_NORM = Mechanism("embedding_norm", "embedding norm")
SCALED_EMBEDDING = Mechanism("scaled_embedding", "embedding scaled by sqrt(hidden)")
PARALLEL_RESIDUAL = Mechanism("parallel_residual", "parallel residual")
"""Attention and MLP side by side, each with a norm of its own; the configuration may switch it off."""

HEAD_NORMS = Mechanism("head_norms", "norms of queries and keys")
GROUPED_HEADS = Mechanism("grouped_heads", "heads that share keys and values")
HEAD_SIZE = Mechanism("head_size", "head size of its own")

EXCLUSIVE: tuple[tuple[str, tuple[Mechanism, ...]], ...] = (
    ("positions", (ALIBI, LEARNED, ROTARY)),
    ("norm", (LAYERNORM, RMSNORM)),
    ("MLP", (PLAIN_MLP, SWIGLU, GEGLU)),
    ("biases", (BIASES, QKV_BIASES, NO_BIASES)),
)
"""What a block has exactly one of, and the mechanisms to choose from."""

KNOWN = (
    *(ALIBI, LEARNED, ROTARY, PARTIAL_ROTARY, EMBEDDING_NORM, PARALLEL_RESIDUAL, LAYERNORM, RMSNORM, PLAIN_MLP),
    *(SWIGLU, GEGLU, NORMS_LESS_ONE, SCALED_EMBEDDING, HEAD_NORMS, BIASES, QKV_BIASES, NO_BIASES, GROUPED_HEADS),
    HEAD_SIZE,
)
"""All of them, in the order in which messages name them."""


def check_exclusive(mechanisms: Collection[Mechanism]) -> None:
    """Check that a set states exactly one mechanism of each group of :data:`EXCLUSIVE`.

    Raises:
        ValueError: it states none of a group, or several.
    """
    for what, group in EXCLUSIVE:
        stated = [mechanism.name for mechanism in group if mechanism in mechanisms]
        if len(stated) != 1:
            choices = ", ".join(mechanism.name for mechanism in group)
            raise ValueError(f"{what}: {' and '.join(stated) or 'none'} stated, and it is one of {choices}")


def in_words(mechanisms: Iterable[Mechanism]) -> str:
    """``no ALiBi and no embedding norm``, in the order of :data:`KNOWN`; mechanisms outside it come last.

    Args:
        mechanisms: one or more.
    """
    order = {mechanism: number for number, mechanism in enumerate(KNOWN)}
    ordered = sorted(mechanisms, key=lambda mechanism: (order.get(mechanism, len(order)), mechanism.name))
    *first, last = [f"no {mechanism.words}" for mechanism in ordered]
    return f"{', '.join(first)} and {last}" if first else last
