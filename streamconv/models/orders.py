"""The order of rows in fused parameters, which the format of a checkpoint decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["GluOrder", "QkvLayout", "RowOrders"]


class QkvLayout(str, Enum):
    """The order of rows in one rank's fused ``query_key_value``, for ``np`` heads in ``ng`` groups of ``hn`` rows.

    ``interleaved`` is ``[ng, np/ng + 2, hn]`` (Megatron checkpoint_version 2 and above; ``[np, 3, hn]`` where each
    head has a key and value of its own). ``blocks`` is all queries, then all keys, then all values, which
    Megatron-DeepSpeed writes since commit 676a482c (2024-12), under the same checkpoint_version 3.0, and Megatron-LM
    wrote as version 0. ``alternating`` is ``[np, hn, 3]``, its version 1: a row of the query, one of the key, one of
    the value [``megatron/training/checkpointing.py:fix_query_key_value_ordering`` of core_v0.17].
    """

    INTERLEAVED = "interleaved"
    BLOCKS = "blocks"
    ALTERNATING = "alternating"


class GluOrder(str, Enum):
    """Which half of a gated ``dense_h_to_4h`` comes first on each rank.

    ``gate-up`` in deepspeedai's Megatron-DeepSpeed and Megatron-LM [``megatron/model/transformer.py:ParallelMLP``];
    ``up-gate`` in bigscience's [``megatron/model/glu_activations.py``: the second half is activated].
    """

    GATE_UP = "gate-up"
    UP_GATE = "up-gate"


@dataclass(frozen=True, slots=True)
class RowOrders:
    """The orders that one checkpoint has.

    ``shares`` says that each rank holds a share of a parameter that may be summed, not a copy of it.
    """

    qkv: QkvLayout = QkvLayout.INTERLEAVED
    glu: GluOrder = GluOrder.GATE_UP
    shares: bool = False
