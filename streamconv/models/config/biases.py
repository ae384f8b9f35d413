"""Settings for the biases of linear layers; the tensors of a Llama-like model show which it has."""

# ruff: noqa: D102 - Setting documents the methods.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamconv.models.biases import BY_ENTRY
from streamconv.models.config.checks import flag
from streamconv.models.config.settings import Args, Config, Setting
from streamconv.models.parameter import ModelSizes

__all__ = ["AnyBias", "Bias"]


@dataclass(frozen=True)
class Bias(Setting):
    """Whether the linear layers of the attention (``attention_bias``) or of the MLP (``mlp_bias``) have biases."""

    entry: str

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.entry,)

    def read(self, config: Config) -> dict[str, Any]:
        said = config.get(self.entry)
        return {} if said is None else {self.entry: flag(self.entry, said)}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        return {self.entry: False}

    def shown(self, sizes: ModelSizes) -> dict[str, Any]:
        return {self.entry: True} if self.entry in sizes.biases else {}

    def to_config(self, args: Args) -> dict[str, Any]:
        return {self.entry: False}


@dataclass(frozen=True)
class AnyBias(Setting):
    """``add_bias_linear``: biases on all linear layers. ``of`` lists the family's entries that switch biases on."""

    of: tuple[str, ...]

    def to_args(self, known: Config) -> dict[str, Any]:
        return {"add_bias_linear": any(known.get(entry) for entry in self.of)}

    def objections(self, args: Args, sizes: ModelSizes, known: Config) -> Iterator[str]:
        for entry in sizes.biases:
            if entry not in self.of:
                where = " and ".join(key.removesuffix(".bias") for key in BY_ENTRY[entry])
                yield f"biases on {where} that are not zero: its configuration has no {entry}"
