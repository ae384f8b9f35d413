"""What a model family is: a table of parameters, what its blocks are made of, and how transformers stores it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from streamconv.models.hf_names import HuggingFace
from streamconv.models.parameter import Parameter, Section

__all__ = ["ModelFamily"]


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family: its name, what its blocks are made of, and its parameters.

    ``positions`` is how it encodes position (``learned``, ``alibi``, ``rotary``), ``norm`` is ``layernorm`` or
    ``rmsnorm``, ``gated`` says whether the MLP is a SwiGLU, ``grouped`` whether heads may share keys and values.
    ``huggingface`` says how transformers names and configures it. ``only_named`` says that another family has the same
    parameters, and only a configuration tells them apart. ``widest`` are the parameters of a model that has all that
    some models of the family have, in order, those marked as optional; empty if all models have the same.
    """

    name: str
    title: str
    positions: str
    parameters: tuple[Parameter, ...]
    huggingface: HuggingFace
    norm: str = "layernorm"
    gated: bool = False
    grouped: bool = False
    only_named: bool = False
    widest: tuple[Parameter, ...] = ()
    rows: Mapping[tuple[Section, str], Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", {(p.section, p.key): p for p in self.parameters})

    def keys(self, section: Section) -> set[str]:
        """The keys that a section must have."""
        return {p.key for p in self.parameters if p.section is section and not p.optional}

    @property
    def choices(self) -> frozenset[str]:
        """The keys in a layer that one model of the family has and another has not."""
        return frozenset(p.key for p in self.widest if p.section is Section.LAYER and p.optional)

    @property
    def chosen(self) -> frozenset[str]:
        """Those of :attr:`choices` that this one has; a family that was not made by :meth:`having` has none."""
        return self.choices & self.keys(Section.LAYER)

    def having(self, keys: Collection[str]) -> ModelFamily:
        """The family as one model has it: with just those of :attr:`choices` that are among ``keys``."""
        if not self.widest:
            return self
        left_out = self.choices - set(keys)
        rows = (p for p in self.widest if p.section is not Section.LAYER or p.key not in left_out)
        parameters = tuple(replace(p, optional=p.optional and p.section is not Section.LAYER) for p in rows)
        stored = tuple(row for row in self.huggingface.widest if row.key not in left_out)
        return replace(self, parameters=parameters, huggingface=replace(self.huggingface, tensors=stored))

    def parameter(self, section: Section, key: str) -> Parameter:
        """The row for a stored key."""
        return self.rows[section, key]
