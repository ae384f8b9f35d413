"""What Hugging Face's folders cannot hold: nothing, since every family is one of transformers."""

from __future__ import annotations

from streamconv.models.family import ModelFamily

__all__ = ["refusal"]


def refusal(family: ModelFamily) -> str | None:
    """Why there are no folders of a family: there are, of every one."""
    return None
