"""The sizes of a model, by the names that most families have for them in ``config.json``."""

from __future__ import annotations

from streamconv.models.config.checks import quotient, same_as
from streamconv.models.config.settings import Size

__all__ = ["head_sizes", "usual_sizes"]


def usual_sizes(
    *, hidden: int, layers: int, heads: int, ffn: int, positions: int, per_head: tuple[Size, ...] = ()
) -> tuple[Size, ...]:
    """The sizes that every family has, each with transformers' default.

    ``per_head`` are those of the family's heads. They follow the number of heads: arguments are written in this order.
    """
    return (
        Size(entry="hidden_size", size="hidden", arg="hidden_size", default=hidden),
        Size(entry="num_hidden_layers", size="num_layers", arg="num_layers", default=layers),
        Size(entry="num_attention_heads", size="heads", arg="num_attention_heads", default=heads),
        *per_head,
        Size(entry="intermediate_size", size="ffn", arg="ffn_hidden_size", default=ffn),
        Size(
            entry="max_position_embeddings",
            size="positions",
            arg="max_position_embeddings",
            default=positions,
            matters=False,
        ),
    )


def head_sizes(*, groups: int | None = None, head_dim: int | None = None) -> tuple[Size, ...]:
    """How many heads of keys and values there are, and how long a head is; both may be null in ``config.json``.

    Args:
        groups: transformers' default of ``num_key_value_heads``, None if that is the number of heads.
        head_dim: its default of ``head_dim``, None if that is the hidden size over the number of heads.
    """
    heads, by_heads = same_as("num_attention_heads"), quotient("hidden_size", "num_attention_heads")
    return (
        Size(
            entry="num_key_value_heads", size="groups", arg="num_key_value_heads", default=groups or heads, null=heads
        ),
        Size(entry="head_dim", size="head_dim", arg="kv_channels", default=head_dim or by_heads, null=by_heads),
    )
