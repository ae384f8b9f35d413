"""What a model family is: a table of parameters, what its blocks are made of, and how transformers stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamconv.models.hf_names import HuggingFace
from streamconv.models.parameter import Parameter, ParameterId, Section

__all__ = ["ModelFamily"]


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family: its name, what its blocks are made of, and its parameters.

    ``positions`` is how it encodes position (``learned``, ``alibi``, ``rotary``), ``norm`` is ``layernorm`` or
    ``rmsnorm``, ``gated`` says whether the MLP is a SwiGLU, ``grouped`` whether heads may share keys and values.
    ``huggingface`` says how transformers names and configures it. ``alias_of`` names the family whose parameters it
    has, where only a configuration tells them apart.
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
    rows: Mapping[tuple[Section, str], Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", {(p.section, p.key): p for p in self.parameters})

    def keys(self, section: Section) -> set[str]:
        """The keys that a section must have."""
        return {p.key for p in self.parameters if p.section is section and not p.optional}

    def parameter(self, parameter: ParameterId) -> Parameter:
        """The row of a stored parameter."""
        return self.rows[parameter.section, parameter.key]
