"""What a tensor-parallel rank of Megatron has of a labelled model, and which layers a stage has.

The rules are those of Megatron-LM's ``megatron/core/tensor_parallel/layers.py`` (column-parallel layers are cut on axis
0, row-parallel ones on axis 1), ``attention.py`` (a rank has whole groups, or an even slice of all rows), ``mlp.py``
(each rank has its part of the gate, then its part of the up), ``transformer_layer.py:get_transformer_layer_offset``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, product

import torch

from tests.making.labelled import GLU, HEAD, QKV, WORDS

Rank = tuple[int, int]

COLUMNS = (QKV, GLU, WORDS, HEAD)
ROWS = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")


@dataclass(frozen=True)
class Cut:
    """How a model is cut: ``stages`` are the layers of each stage, ``multiple`` is what the vocabulary is padded to.

    ``chunks`` are the layers of each chunk in the order of the layers, where those of one stage are not as many.
    """

    tp: int = 1
    stages: tuple[int, ...] = (12,)
    vpp: int = 1
    multiple: int = 4
    chunks: tuple[int, ...] = ()

    @property
    def pp(self) -> int:
        return len(self.stages)

    @property
    def ranks(self) -> list[Rank]:
        return list(product(range(self.tp), range(self.pp)))

    def layers(self, stage: int, chunk: int) -> range:
        """The layers of a chunk: chunk 0 of all stages comes before chunk 1 of all stages."""
        each = self.chunks or tuple(layers // self.vpp for layers in self.stages) * self.vpp
        number = chunk * self.pp + stage
        end = list(accumulate(each))[number]
        return range(end - each[number], end)

    def __str__(self) -> str:
        stages = "-".join(map(str, self.stages))
        return f"tp{self.tp}pp{stages}" + (f"vpp{self.vpp}" if self.vpp > 1 else "")


def even(tp: int, pp: int, vpp: int = 1, num_layers: int = 12) -> Cut:
    """Stages of as many layers each."""
    return Cut(tp, (num_layers // pp,) * pp, vpp)


def padded(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    """A vocabulary with copies of its last row up to a multiple."""
    return torch.cat([tensor, tensor[-1:].expand(-len(tensor) % multiple, -1)])


def shard(name: str, tensor: torch.Tensor, cut: Cut, rank: int, *, gated: bool) -> torch.Tensor:
    """What a rank has of a parameter."""
    if name in (WORDS, HEAD):
        tensor = padded(tensor, cut.multiple * cut.tp)
    if gated and GLU in name:
        mine = torch.cat([half.chunk(cut.tp)[rank] for half in tensor.chunk(2)])
    elif any(part in name for part in COLUMNS):
        mine = tensor.chunk(cut.tp)[rank]
    elif name.endswith(ROWS):
        mine = tensor.chunk(cut.tp, 1)[rank]
    else:
        mine = tensor
    return mine.clone().contiguous()
