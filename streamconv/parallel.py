"""Who owns what: tensor-parallel and pipeline-parallel sizes, and which stage owns which layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from streamconv.errors import UsageError

__all__ = ["ParallelLayout", "even_stages"]


def even_stages(num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers per stage, as even as can be: the first ``num_layers % pp`` stages hold one more."""
    base, extra = divmod(num_layers, pp)
    return tuple(base + (stage < extra) for stage in range(pp))


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Tensor-parallel size ``tp`` and the number of transformer layers on each pipeline stage."""

    tp: int
    stages: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise UsageError(f"tensor parallel size {self.tp}: must be at least 1")
        if not self.stages or min(self.stages) < 0:
            raise UsageError(f"pipeline stages {self.stages}: each needs a number of layers, at least 0")

    @property
    def pp(self) -> int:
        """Pipeline-parallel size."""
        return len(self.stages)

    @property
    def num_layers(self) -> int:
        """Transformer layers over all stages."""
        return sum(self.stages)

    def layers_of(self, stage: int) -> range:
        """The global layer numbers, from 0, that ``stage`` owns."""
        ends = list(accumulate(self.stages))
        return range(ends[stage] - self.stages[stage], ends[stage])

    def __str__(self) -> str:
        if len(set(self.stages)) == 1:
            return f"TP {self.tp} x PP {self.pp} ({self.stages[0]} layers a stage)"
        return f"TP {self.tp} x PP {self.pp} (stages of {','.join(map(str, self.stages))} layers)"
