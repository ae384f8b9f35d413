"""Who owns what: tensor-parallel and pipeline-parallel sizes, and which stage owns which layer."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.errors import UsageError

__all__ = ["ParallelLayout", "even_stages"]


def even_stages(num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers per stage, as even as can be: the first ``num_layers % pp`` stages hold one more."""
    base, extra = divmod(num_layers, pp)
    return tuple(base + (stage < extra) for stage in range(pp))


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Tensor-parallel size ``tp``, the number of transformer layers on each pipeline stage, and ``vpp``, the virtual
    stages on each.

    With virtual stages every stage holds ``vpp`` chunks of as many layers. Chunk 0 of all stages comes first, then
    chunk 1 of all stages, and so on [``megatron/core/transformer/transformer_layer.py:get_transformer_layer_offset``].
    """

    tp: int
    stages: tuple[int, ...]
    vpp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise UsageError(f"tensor parallel size {self.tp}: must be at least 1")
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
        """Transformer layers over all stages."""
        return sum(self.stages)

    def layers_of(self, stage: int, chunk: int = 0) -> range:
        """The global layer numbers, from 0, of one chunk of ``stage``: all of the stage's without virtual stages."""
        sizes = [layers // self.vpp for layers in self.stages]
        start = chunk * sum(sizes) + sum(sizes[:stage])
        return range(start, start + sizes[stage])

    def chunks_of(self, stage: int) -> tuple[range, ...]:
        """The global layer numbers of each chunk of ``stage``."""
        return tuple(self.layers_of(stage, chunk) for chunk in range(self.vpp))

    def __str__(self) -> str:
        virtual = f", VPP {self.vpp}" if self.vpp > 1 else ""
        if len(set(self.stages)) == 1:
            return f"TP {self.tp} x PP {self.pp} ({self.stages[0]} layers a stage{virtual})"
        return f"TP {self.tp} x PP {self.pp} (stages of {','.join(map(str, self.stages))} layers{virtual})"
