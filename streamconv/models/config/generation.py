"""``generation_config.json``: how a Hugging Face model generates. Its ``config.json`` has only a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["StoredConfig", "generation_of"]

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class StoredConfig(dict[str, Any]):
    """A source's ``config.json``, and the ``generation_config.json`` beside it, None if there is none."""

    generation: Mapping[str, Any] | None = None


def generation_of(
    source: Mapping[str, Any] | None, config: Mapping[str, Any], said: Mapping[str, Any]
) -> dict[str, Any]:
    """The entries of the new ``generation_config.json``: the source's, or else those of the new ``config.json``.

    Args:
        source: the source's ``config.json``, None if it is no Hugging Face model.
        config: the ``config.json`` that is written.
        said: the user's entries. Only their tokens replace the source's, which may be more than ``config.json`` has.
    """
    stored = source.generation if isinstance(source, StoredConfig) else None
    new = _TOKENS if stored is None else [name for name in _TOKENS if name in said]
    kept = {"_from_model_config": True} if stored is None else {n: v for n, v in stored.items() if n not in new}
    return {**kept, **{name: config[name] for name in new if config.get(name) is not None}}
