"""What a model family is: a table of parameters, what its blocks are made of, and how transformers stores it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from streamconv.models.biases import BIAS_MECHANISMS, bias_mechanism
from streamconv.models.hf_names import HuggingFace
from streamconv.models.mechanisms import GEGLU, GROUPED_HEADS, SWIGLU, Mechanism, check_exclusive
from streamconv.models.parameter import Parameter, ParameterId, Section

__all__ = ["ModelFamily"]


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family: its name, what its blocks are made of, and its parameters.

    ``mechanisms`` are all that its blocks are made of, including those that only some of its models have (heads that
    share keys and values, a head size of its own). ``huggingface`` says how transformers names and configures it.
    ``only_named`` says that another family has parameters of the same names, so that only a configuration tells the two
    apart. ``widest`` lists every parameter that any model of the family has, in order; those that a model may lack are
    marked as optional. It is empty if all models have the same parameters.

    Raises:
        ValueError: the mechanisms state no norm, or two; likewise for positions, MLP and biases.
    """

    name: str
    title: str
    mechanisms: frozenset[Mechanism]
    parameters: tuple[Parameter, ...]
    huggingface: HuggingFace
    only_named: bool = False
    widest: tuple[Parameter, ...] = ()
    rows: Mapping[tuple[Section, str], Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_exclusive(self.mechanisms)
        object.__setattr__(self, "rows", {(p.section, p.key): p for p in self.parameters})

    @property
    def gated(self) -> bool:
        """Whether ``dense_h_to_4h`` has two halves: a gate, and what it gates."""
        return not self.mechanisms.isdisjoint((SWIGLU, GEGLU))

    @property
    def grouped(self) -> bool:
        """Whether its heads may share keys and values."""
        return GROUPED_HEADS in self.mechanisms

    def keys(self, section: Section) -> set[str]:
        """The keys that a section must have."""
        return {p.key for p in self.parameters if p.section is section and not p.optional}

    @property
    def choices(self) -> frozenset[str]:
        """The keys in a layer that some models of the family have and others lack."""
        return frozenset(p.key for p in self.widest if p.section is Section.LAYER and p.optional)

    @property
    def chosen(self) -> frozenset[str]:
        """Those of :attr:`choices` that this one has; a family that was not made by :meth:`having` has none."""
        return self.choices & self.keys(Section.LAYER)

    def having(self, keys: Collection[str]) -> ModelFamily:
        """The family narrowed to one model: of :attr:`choices` it keeps those in ``keys``."""
        if not self.widest:
            return self
        left_out = self.choices - set(keys)
        rows = (p for p in self.widest if p.section is not Section.LAYER or p.key not in left_out)
        parameters = tuple(replace(p, optional=p.optional and p.section is not Section.LAYER) for p in rows)
        stored = tuple(row for row in self.huggingface.widest if row.key not in left_out)
        mechanisms = self.mechanisms - set(BIAS_MECHANISMS) | {bias_mechanism(self.choices & set(keys))}
        return replace(
            self,
            mechanisms=mechanisms,
            parameters=parameters,
            huggingface=replace(self.huggingface, tensors=stored),
        )

    def parameter(self, parameter: ParameterId) -> Parameter:
        """The row of a stored parameter."""
        return self.rows[parameter.section, parameter.key]
