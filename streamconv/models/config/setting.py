"""The base of all settings: what a family asks of an entry of its ``config.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamconv.models.parameter import ModelSizes

__all__ = ["Args", "Config", "Setting"]

Config = Mapping[str, Any]
"""Entries of a ``config.json``."""

Args = Mapping[str, Any]
"""Training arguments by the names of Megatron-DeepSpeed (deepspeedai's fork), which Megatron-LM mostly shares."""


class Setting:
    """Some entries of a configuration, translated both ways; a method returns nothing unless a subclass overrides it.

    ``entries`` are their names in this package; :meth:`read` and :meth:`write` know other spellings. ``asks`` are those
    that must be known. ``matters`` is true if logits depend on them; ``spelled_twice`` if transformers' releases spell
    them differently, so that both spellings are written. Invalid values raise ValueError.
    """

    matters: bool = True
    spelled_twice: bool = False

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries, by their names in this package."""
        return ()

    @property
    def asks(self) -> tuple[str, ...]:
        """The entries that must be known."""
        return ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name in a ``config.json`` that means one of the entries."""
        return self.entries

    def read(self, config: Config) -> dict[str, Any]:
        """The entries that a ``config.json`` contains, without defaults."""
        return {}

    def doubts(self, config: Config) -> Iterator[str]:
        """What a ``config.json`` says twice, and otherwise than :meth:`read` takes it."""
        return iter(())

    def overrule(self, config: Config, said: Config) -> dict[str, Any]:
        """The entries of ``said``, and of ``config`` those that ``said`` leaves out."""
        return {name: said[name] for name in self.spellings if name in said}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        """What transformers assumes for entries that ``config`` leaves out, given those ``known`` so far."""
        return {}

    def to_args(self, known: Config) -> dict[str, Any]:
        """The training arguments that follow from the known entries."""
        return {}

    def refusals(self, known: Config) -> Iterator[str]:
        """Entries, with their values, that no training argument can express."""
        return iter(())

    def core_refusals(self, known: Config) -> Iterator[str]:
        """The same for Megatron-Core's arguments; its target checks itself what depends on the release."""
        return self.refusals(known)

    def shown(self, sizes: ModelSizes) -> dict[str, Any]:
        """The entries that tensors show."""
        return {}

    def to_config(self, args: Args) -> dict[str, Any]:
        """The entries that follow from training arguments, and those that are always the same."""
        return {}

    def objections(self, args: Args, sizes: ModelSizes, known: Config) -> Iterator[str]:
        """What arguments or sizes require that transformers' model, with the entries ``known``, cannot do."""
        return iter(())

    def warnings(self, args: Args) -> Iterator[str]:
        """What transformers' model computes differently."""
        return iter(())

    def write(self, known: Config) -> dict[str, Any]:
        """The entries as they are written."""
        return {name: known[name] for name in self.entries if name in known}
