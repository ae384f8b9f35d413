"""What GPT-NeoX cannot hold."""

from __future__ import annotations

from streamconv.models.families import gpt_neox
from streamconv.models.family import ModelFamily

__all__ = ["refusal"]


def refusal(family: ModelFamily) -> str | None:
    """Why a family is neither read from gpt-neox's folders nor written to them."""
    if family.name == gpt_neox.FAMILY.name:
        return None
    return "only GPT-NeoX's own architecture is translated in gpt-neox's folders"
