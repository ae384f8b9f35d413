"""A model for ZeRO's folders: sizes that nothing divides, and values that tell every element from every other.

A master is never a number that 16 bits can hold, and rounds up as often as down; no two elements of a model are equal,
as masters or rounded. So an element in a wrong place, or a rounded one where a master is meant, is always found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The bit patterns that are used, from a small number up, and the bits that a master has below them.
FIRST = {"bf16": 0x2F81, "fp16": 0x0801}
LOWER_BITS = {"bf16": 16, "fp16": 13}


@dataclass(frozen=True)
class Parameter:
    """One parameter: the optimizer's ``group`` that trains it, None if it is frozen, and whose values it shares."""

    name: str
    shape: tuple[int, ...]
    group: int | None = 0
    shares: str | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def flat(self) -> bool:
        """Whether it is in the flat groups: the engine leaves out what has no elements, as it does what is frozen."""
        return self.group is not None and self.numel > 0 and self.shares is None


@dataclass(frozen=True)
class Model:
    """Parameters in the order of ``named_parameters``, and persistent buffers."""

    parameters: tuple[Parameter, ...]
    buffers: tuple[str, ...] = ("count", "seen", "norm.mean")

    @property
    def own(self) -> tuple[Parameter, ...]:
        """Those that have values of their own."""
        return tuple(parameter for parameter in self.parameters if parameter.shares is None)

    def without(self, *names: str) -> Model:
        left = (parameter for parameter in self.parameters if not {parameter.name, parameter.shares} & set(names))
        return Model(tuple(left), self.buffers)

    def groups(self) -> list[list[Parameter]]:
        """What each group of the optimizer trains."""
        count = 1 + max(parameter.group for parameter in self.parameters if parameter.group is not None)
        return [[each for each in self.own if each.flat and each.group == number] for number in range(count)]


# Among the ranks' ends are some inside a row of each matrix; group 2 has nothing for most ranks.
ODD = Model(
    (
        Parameter("embed.weight", (7, 5)),
        Parameter("a.weight", (3, 5)),
        Parameter("a.bias", (3,), 1),
        Parameter("scale", (1,), 2),
        Parameter("empty", (0, 4)),
        Parameter("frozen.weight", (5, 5), None),
        Parameter("layers.0.frozen", (3,), None),
        Parameter("b.weight", (5, 3)),
        Parameter("b.bias", (5,), 1),
        Parameter("deep.weight", (2, 3, 7)),
        Parameter("point", (), 1),
        Parameter("head.weight", (7, 5), shares="embed.weight"),
    )
)


def labelled(sizes: Sequence[int], dtype: str) -> list[torch.Tensor]:
    """Flat fp32 masters of these lengths; with more than 8192 elements some are equal."""
    number = torch.arange(sum(sizes))
    if dtype == "fp32":
        values = (0x3E000001 + 1237 * number).to(torch.int32).view(torch.float32)
    else:
        # Every second pattern: one that is rounded up is still its own.
        patterns = (FIRST[dtype] + 2 * (number % 8192)).to(torch.int16)
        values = patterns.view(DTYPES[dtype]).float()
        below = 1 + 2 * ((number * 40503) % (1 << (LOWER_BITS[dtype] - 1)))
        values = (values.view(torch.int32) + below.to(torch.int32)).view(torch.float32)
    values = torch.where(number % 3 == 0, -values, values)
    return list(values.split(list(sizes)))


def masters_of(model: Model, dtype: str) -> Tensors:
    """The master of each parameter that has values of its own, frozen ones too."""
    values = labelled([parameter.numel for parameter in model.own], dtype)
    return {each.name: flat.view(each.shape) for each, flat in zip(model.own, values, strict=True)}


def buffers_of(model: Model) -> Tensors:
    """Whole numbers, one number, and fp32 values that 16 bits do not hold."""
    known = {"count": torch.tensor([3, 2**40]), "seen": torch.tensor(7), "norm.mean": torch.tensor([0.1, -0.2, 1 / 3])}
    return {name: known.get(name, torch.full((3,), 1 / 3)) for name in model.buffers}
