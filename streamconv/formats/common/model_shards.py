"""The shards of a model and their index, as transformers names them.

Names and index: ``huggingface_hub/serialization/_base.py:split_state_dict_into_shards_factory``. Every name contains
the number of shards, so all are planned before the first is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["indexed", "json_text", "shard_names", "shards_of"]

S = TypeVar("S")


def shards_of(tensors: Iterable[tuple[str, S, int]], most: int) -> list[dict[str, S]]:
    """The tensors in order, (name, slot, bytes), in shards of at most ``most`` bytes.

    A larger tensor is a shard by itself. A tensor of no bytes stays with the one before it.
    """
    shards: list[dict[str, S]] = []
    size = 0
    for name, slot, nbytes in tensors:
        if not shards or (nbytes and size + nbytes > most):
            shards.append({})
            size = 0
        shards[-1][name] = slot
        size += nbytes
    return shards or [{}]


def shard_names(whole: str, count: int) -> list[str]:
    """The names of ``count`` shards of a model that is called ``whole`` in one file."""
    stem, _, suffix = whole.rpartition(".")
    return [whole] if count == 1 else [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]


def indexed(names: Sequence[str], shards: Sequence[Iterable[str]], total: int) -> str:
    """The text of the index of shards; ``total`` is the bytes of all tensors."""
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    return json_text({"metadata": {"total_size": total}, "weight_map": weight_map})


def json_text(value: Mapping[str, Any]) -> str:
    """A JSON object as transformers writes its files."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
