"""The result of a comparison: what differs, what was not compared, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamconv.core.errors import DifferenceError, SourceError
from streamconv.core.result import Result
from streamconv.verification.rest import NotCompared
from streamconv.verification.side import Side

__all__ = ["Comparison", "ShapeDifference", "TensorPlace", "ValueDifference"]

_DIFFERENT = DifferenceError.exit_code


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """An element's value, and its file and offset in bytes."""

    value: float | None
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class ShapeDifference:
    """A tensor whose shape or dtype is not the same on both sides."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """A tensor whose values differ: the number of such elements, the largest difference (infinite if one side is NaN
    and the other a number), the largest relative to the larger value, and the index of the first. ``rounded`` is the
    side that has the other one's values as a cast to its dtype rounds them, None if neither has.
    """

    name: str
    elements: int
    numel: int
    max_abs: float
    max_rel: float
    first: tuple[int, ...]
    a: TensorPlace
    b: TensorPlace
    rounded: str | None = None


@dataclass(slots=True, repr=False)
class Comparison(Result):
    """The result of a comparison. ``compared`` counts the tensors that both sides have, without copies."""

    a: Side
    b: Side
    compared: int = 0
    nbytes: int = 0
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    shapes: list[ShapeDifference] = field(default_factory=list)
    dtypes: list[ShapeDifference] = field(default_factory=list)
    values: list[ValueDifference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether a difference was found other than in dtypes."""
        return bool(self.only_a or self.only_b or self.shapes or self.values)

    @property
    def rounded(self) -> str | None:
        """The side, ``a`` or ``b``, that has the other one's values rounded to its dtypes, with no other difference;
        None if there is none.
        """
        sides = {difference.rounded for difference in self.values}
        if len(sides) != 1 or self.only_a or self.only_b or self.shapes or not self.is_complete:
            return None
        return sides.pop()

    @property
    def not_compared(self) -> list[NotCompared]:
        """What is in a side and was not compared, with the exit code that it leads to; what both sides have once."""
        return list(dict.fromkeys([*self.a.not_compared, *self.b.not_compared]))

    @property
    def is_complete(self) -> bool:
        """Whether at least one element was compared, and all that the names of the sides promise: under canonical names
        all parameters, under stored names all tensors.
        """
        return bool(self.nbytes) and not any(each.exit_code for each in self.not_compared)

    @property
    def is_equal(self) -> bool:
        """Whether all that was to be compared was, and nothing differs, dtypes included."""
        return self.is_faithful and not self.dtypes

    @property
    def is_faithful(self) -> bool:
        """Whether all that was to be compared was, and nothing differs but dtypes: values are equal after the cast."""
        return self.is_complete and not self.differs

    @property
    def exit_code(self) -> int:
        """7 if anything differs, dtypes included; else 6 if a part is broken, 3 if nothing was compared; else 0."""
        return _DIFFERENT if self.dtypes else self.exit_code_of_values

    @property
    def exit_code_of_values(self) -> int:
        """As :attr:`exit_code`, but dtypes may differ."""
        if self.differs:
            return _DIFFERENT
        codes = [each.exit_code for each in self.not_compared]
        return max([*codes, 0 if self.nbytes else SourceError.exit_code])
