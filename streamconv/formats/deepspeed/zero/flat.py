"""Whole parameters out of flat tensors that ranks hold parts of, and the proof's record of what is padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.core.tiling import Box
from streamconv.formats.deepspeed.zero.recorded import Shapes

__all__ = ["Flat", "Rebuilt", "scattered_parts"]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Parameters by name, the stored flat tensors that they are cut from, and the boxes of these that are padding."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    sources: dict[str, LazyTensor] = field(default_factory=dict)
    padding: dict[str, list[Box]] = field(default_factory=dict)

    def add(self, other: Rebuilt, names: Mapping[str, str] | None = None) -> None:
        """Add what another has; ``names`` are other names for its parameters."""
        self.tensors.update({(names or {}).get(name, name): tensor for name, tensor in other.tensors.items()})
        self.sources.update(other.sources)
        for name, boxes in other.padding.items():
            self.padding.setdefault(name, []).extend(boxes)


class Flat:
    """Flat tensors one behind the other, as one.

    Args:
        parts: tensors of one axis and one dtype, by a name for messages.
        where: for messages.

    Raises:
        DamagedError: they are something else.
    """

    def __init__(self, parts: Mapping[str, LazyTensor], where: Path) -> None:
        for name, tensor in parts.items():
            if not isinstance(tensor, LazyTensor) or len(tensor.shape) != 1:
                raise DamagedError(f"{name} is no flat tensor of one axis", where=where)
        if len({tensor.dtype for tensor in parts.values()}) > 1:
            kinds = ", ".join(sorted({str(tensor.dtype) for tensor in parts.values()}))
            raise DamagedError(f"flat tensors of one group have the dtypes {kinds}", where=where)
        self.parts = dict(parts)
        self.whole = concat(list(parts.values()), 0) if parts else None

    @property
    def numel(self) -> int:
        """The elements of all parts."""
        return 0 if self.whole is None else self.whole.numel

    def cut(self, start: int, stop: int) -> LazyTensor:
        """Elements ``start`` to ``stop``."""
        if self.whole is None:
            raise IndexError(f"elements {start} to {stop} of nothing")
        return self.whole.slice(0, start, stop)

    def boxes(self, start: int, stop: int) -> Iterator[tuple[str, Box]]:
        """The boxes of the parts that elements ``start`` to ``stop`` are in, by the parts' names."""
        position = 0
        for name, tensor in self.parts.items():
            low, high = max(start - position, 0), min(stop - position, tensor.numel)
            if low < high:
                yield name, ((low, high),)
            position += tensor.numel


def scattered_parts(ranks: Sequence[Flat], shapes: Shapes, where: Path) -> Rebuilt:
    """The parameters of which each rank holds ``ceil(numel / ranks)`` elements, the last ranks with padding behind
    them, one parameter behind the other [deepspeed/utils/zero_to_fp32.py:_zero3_merge_trainable_params].

    Raises:
        DamagedError: the ranks hold more or fewer elements than the shapes have.
    """
    result = Rebuilt(sources={name: part for flat in ranks for name, part in flat.parts.items()})
    sizes = {name: -(-prod(shape) // len(ranks)) for name, shape in shapes.items()}
    need = sum(sizes.values())
    for number, flat in enumerate(ranks):
        if flat.numel != need:
            words = f"rank {number} holds {flat.numel} elements of parameters, and the recorded shapes need {need}"
            raise DamagedError(words, where=where, remedy="are all files of one run and one step?")
    position = 0
    for name, shape in shapes.items():
        numel, size = prod(shape), sizes[name]
        parts = []
        for number, flat in enumerate(ranks):
            true = min(size, max(0, numel - number * size))
            parts.append(flat.cut(position, position + true))
            for part, box in flat.boxes(position + true, position + size):
                result.padding.setdefault(part, []).append(box)
        result.tensors[name] = concat(parts, 0).shaped(shape)
        position += size
    return result
