"""What a model family is: a table of parameters, what its blocks are made of, and how transformers stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamconv.models.hf_names import HuggingFace
from streamconv.models.mechanisms import GROUPED_HEADS, SWIGLU, Mechanism, check_exclusive
from streamconv.models.parameter import Parameter, ParameterId, Section

__all__ = ["ModelFamily"]


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family: its name, what its blocks are made of, and its parameters.

    ``mechanisms`` are all that its blocks are made of; one that only some of its models have (heads that share keys and
    values, a head size of its own) is among them. ``huggingface`` says how transformers names and configures it.
    ``only_named`` says that another family has parameters of the same names, so that only a configuration tells the two
    apart.

    Raises:
        ValueError: the mechanisms state no norm, or two; or so of positions, MLPs, biases.
    """

    name: str
    title: str
    mechanisms: frozenset[Mechanism]
    parameters: tuple[Parameter, ...]
    huggingface: HuggingFace
    only_named: bool = False
    rows: Mapping[tuple[Section, str], Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_exclusive(self.mechanisms)
        object.__setattr__(self, "rows", {(p.section, p.key): p for p in self.parameters})

    @property
    def gated(self) -> bool:
        """Whether ``dense_h_to_4h`` has the rows of a gate and of what it gates."""
        return SWIGLU in self.mechanisms

    @property
    def grouped(self) -> bool:
        """Whether its heads may share keys and values."""
        return GROUPED_HEADS in self.mechanisms

    def keys(self, section: Section) -> set[str]:
        """The keys that a section must have."""
        return {p.key for p in self.parameters if p.section is section and not p.optional}

    def parameter(self, parameter: ParameterId) -> Parameter:
        """The row of a stored parameter."""
        return self.rows[parameter.section, parameter.key]
