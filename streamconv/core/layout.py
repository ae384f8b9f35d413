"""How a model is split over ranks: its parallel sizes, and which stage holds which layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streamconv.core.errors import UsageError

__all__ = ["FIRST_RANK", "ParallelLayout", "RankCoordinates", "even_stages"]


def even_stages(num_layers: int, pp: int) -> tuple[int, ...]:
    """The number of layers on each stage, split evenly; the first ``num_layers % pp`` stages hold one more."""
    base, extra = divmod(num_layers, pp)
    return tuple(base + (stage < extra) for stage in range(pp))


@dataclass(frozen=True, slots=True, order=True)
class RankCoordinates:
    """A rank of a model: its tensor-parallel rank ``tp``, its pipeline stage ``pp``, its expert-parallel rank ``ep``,
    and its rank ``etp`` among the ranks that split one expert's tensors; all count from 0.
    """

    tp: int = 0
    pp: int = 0
    ep: int = 0
    etp: int = 0


FIRST_RANK = RankCoordinates()
"""The rank whose coordinates are all 0."""


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """How a model is spread over ranks.

    Attributes:
        tp: tensor-parallel size.
        stages: the number of transformer layers on each pipeline stage.
        vpp: the number of virtual stages on each stage.
        ep: expert-parallel size: the number of ranks that divide the experts of a layer among them.
        etp: expert tensor-parallel size: the number of ranks that split the tensors of one expert.

    With virtual stages every stage holds ``vpp`` chunks of equally many layers. Chunk 0 of all stages comes first, then
    chunk 1 of all stages, and so on [``megatron/core/transformer/transformer_layer.py:get_transformer_layer_offset``].
    """

    tp: int
    stages: tuple[int, ...]
    vpp: int = 1
    ep: int = 1
    etp: int = 1

    def __post_init__(self) -> None:
        for what, size in (("tensor", self.tp), ("expert", self.ep), ("expert tensor", self.etp)):
            if size < 1:
                raise UsageError(f"{what} parallel size {size}: must be at least 1")
        if not self.stages or min(self.stages) < 0:
            raise UsageError(f"pipeline stages {self.stages}: each needs a number of layers, at least 0")
        if self.vpp < 1:
            raise UsageError(f"{self.vpp} virtual stages: must be at least 1")
        if self.vpp > 1 and self.pp == 1:
            raise UsageError(f"{self.vpp} virtual stages need a pipeline of at least 2 stages", remedy="say --pp too")
        if self.vpp > 1 and any(layers % self.vpp or not layers for layers in self.stages):
            words = ",".join(map(str, self.stages))
            raise UsageError(
                f"stages of {words} layers do not divide into {self.vpp} virtual stages each",
                remedy="choose another --vpp, --pp or --pp-layers",
            )

    @property
    def pp(self) -> int:
        """Pipeline-parallel size."""
        return len(self.stages)

    @property
    def num_layers(self) -> int:
        """The number of transformer layers on all stages together."""
        return sum(self.stages)

    def ranks(self) -> Iterator[RankCoordinates]:
        """The ranks of a model without experts: all stages of tensor-parallel rank 0, then those of 1, and so on."""
        return (RankCoordinates(tp, pp) for tp in range(self.tp) for pp in range(self.pp))

    def layers_of(self, stage: int, chunk: int = 0) -> range:
        """The global layer numbers, from 0, of one chunk of ``stage``; without virtual stages chunk 0 is the stage."""
        sizes = [layers // self.vpp for layers in self.stages]
        start = chunk * sum(sizes) + sum(sizes[:stage])
        return range(start, start + sizes[stage])

    def chunks_of(self, stage: int) -> tuple[range, ...]:
        """The global layer numbers of each chunk of ``stage``."""
        return tuple(self.layers_of(stage, chunk) for chunk in range(self.vpp))

    def __str__(self) -> str:
        virtual = f", VPP {self.vpp}" if self.vpp > 1 else ""
        sizes = f"TP {self.tp} x PP {self.pp}" + (f" x EP {self.ep}" if self.ep > 1 else "")
        sizes += f" (expert TP {self.etp})" if self.etp not in (1, self.tp) else ""
        if len(set(self.stages)) == 1:
            return f"{sizes} ({self.stages[0]} layers a stage{virtual})"
        return f"{sizes} (stages of {','.join(map(str, self.stages))} layers{virtual})"
