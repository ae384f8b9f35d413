"""Refusals of Hugging Face's folders: none, since transformers has every family."""

from __future__ import annotations

from streamconv.models.family import ModelFamily

__all__ = ["refusal"]


def refusal(family: ModelFamily) -> str | None:
    """None: a folder can hold any family."""
    return None
