"""A labelled model of each family, and how transformers names, configures and stores it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from streamconv.models.config.settings import Size
from streamconv.models.family import ModelFamily
from streamconv.models.orders import QkvLayout
from streamconv.models.registry import known_families
from tests.making.hugging_face import hugging_face_tensors, save_hugging_face
from tests.making.labelled import Labelled, Sizes, labelled


@dataclass(frozen=True)
class Case:
    """A family with a head of its own, or tied to the embedding; ``sizes`` are those of its kind if it has none."""

    family: ModelFamily
    head: bool
    sizes: Sizes | None = None

    def __str__(self) -> str:
        return f"{self.family.name}-{'untied' if self.head else 'tied'}"

    def model(self) -> Labelled:
        """Its labelled model."""
        return labelled(self.family.parameters, self.sizes or sizes_of(self.family), head=self.head)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same as transformers stores it."""
        table = self.family.huggingface
        return hugging_face_tensors(self.model(), table.tensors, blocks=table.qkv is QkvLayout.BLOCKS)

    def save(self, folder: Path, **config: Any) -> None:
        """A new folder of it."""
        save_hugging_face(folder, self.tensors(), {**config_of(self.family, self.model()), **config})


Stored = Callable[[Case], Path]
"""Gives a case's folder."""


def sizes_of(family: ModelFamily) -> Sizes:
    """Two key and value heads for four queries, heads of another width than the hidden size has for each, and an MLP
    of no round size: as far as the family's configuration can say it.
    """
    settable = {setting.size for setting in family.huggingface.settings if isinstance(setting, Size)}
    return Sizes(
        groups=2 if family.grouped else 4,
        head_dim=8 if "head_dim" in settable else 4,
        ffn=24 if "ffn" in settable else 64,
        gated=family.gated,
    )


def config_of(family: ModelFamily, model: Labelled) -> dict[str, Any]:
    """A ``config.json`` that says the sizes, and leaves the rest to transformers' defaults."""
    table = family.huggingface
    sizes = {s.entry: getattr(model.sizes, s.size) for s in table.settings if isinstance(s, Size)}
    own = {"model_type": table.model_type, "architectures": [table.architecture]}
    return {**own, **sizes, "vocab_size": model.sizes.vocab, "tie_word_embeddings": not model.has_head}


def case_of(name: str, *, head: bool = False, **sizes: Any) -> Case:
    """A family by its name, with sizes of its kind but for those that are said."""
    family = next(family for family in known_families() if family.name == name)
    return Case(family, head, replace(sizes_of(family), **sizes))
