"""How a parameter is made whole from its shards, and cut into shards again.

``gather`` makes the canonical tensors (whole, unfused) of a parameter from its shards, and ``shard`` cuts one rank's
tensor from the canonical ones. Fused rows are taken apart before ranks are joined, and put together after they are
cut, because a shard of a fused tensor is not a slice of the fused whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamconv.core.lazy import LazyTensor, concat, share, total
from streamconv.models.orders import GluOrder, QkvLayout, RowOrders
from streamconv.models.parameter import ModelSizes, Parameter

__all__ = ["gather", "part_of", "shard"]


def gather(
    parameter: Parameter, shards: Sequence[LazyTensor], sizes: ModelSizes, orders: RowOrders
) -> tuple[LazyTensor, ...]:
    """The canonical tensors of a parameter from its tensor-parallel shards: one tensor, or one for each fused part.

    Query, key and value have shape ``(groups, rows of a group, ..)``, gate and up ``(ffn, ..)``, any other tensor the
    parameter's own. Parts keep the dtypes that they are stored in, which may differ. Pass one shard of a replicated
    parameter, and all shards of a summed one if ranks hold shares. If the number of heads is unknown, the rows of
    query_key_value are joined in stored order (for interleaved rows only). Where the ranks do not divide the groups,
    each holds an equal slice of the rows of all groups.
    """
    if parameter.is_glu:
        parts = [_halves(shard, orders.glu) for shard in shards]
    elif parameter.parts and sizes.head_dim is not None:
        if sizes.groups is not None and sizes.groups % len(shards):
            shards = [concat(shards, 0).coalesced()]
        parts = [_qkv_parts(shard, sizes, orders.qkv) for shard in shards]
    else:
        if parameter.axis is not None:
            return (concat(shards, parameter.axis).coalesced(),)
        return (total(shards) if parameter.summed and orders.shares else shards[0].coalesced(),)
    numbers = range(len(parameter.parts))
    return tuple(concat([part[index].as_stored() for part in parts], 0).coalesced() for index in numbers)


def _halves(shard: LazyTensor, order: GluOrder) -> tuple[LazyTensor, ...]:
    rows = shard.shape[0] // 2
    halves = shard.slice(0, 0, rows), shard.slice(0, rows, 2 * rows)
    return halves if order is GluOrder.GATE_UP else halves[::-1]


def _qkv_parts(shard: LazyTensor, sizes: ModelSizes, layout: QkvLayout) -> tuple[LazyTensor, ...]:
    """Query, key and value of one rank, each by group."""
    heights = sizes.group_rows
    groups = shard.shape[0] // sum(heights)
    parts = []
    start = 0
    for height in heights:
        if layout is QkvLayout.BLOCKS:
            rows = shard.slice(0, start * groups, (start + height) * groups)
            parts.append(rows.unflatten(0, groups, height))
        elif layout is QkvLayout.ALTERNATING:
            part = start // height
            rows = shard.unflatten(0, groups * height, len(heights)).slice(1, part, part + 1).flatten(0)
            parts.append(rows.unflatten(0, groups, height))
        else:
            parts.append(shard.unflatten(0, groups, sum(heights)).slice(1, start, start + height))
        start += height
    return tuple(parts)


def shard(parameter: Parameter, whole: Sequence[LazyTensor], tp: int, rank: int, orders: RowOrders) -> LazyTensor:
    """One rank's tensor of a parameter, cut from its canonical tensors, with fused rows in the order of ``orders``.

    Where the ranks do not divide the groups of query_key_value, a rank has an equal slice of the interleaved rows of
    all groups [``megatron/core/transformer/attention.py:SelfAttention``; ranks gather the slices before they use them].
    """
    if len(whole) == 1:
        (tensor,) = whole
        if parameter.axis is None:
            return share(tensor, tp) if parameter.summed and orders.shares else tensor
        size = tensor.shape[parameter.axis] // tp
        return tensor.slice(parameter.axis, rank * size, (rank + 1) * size).coalesced()
    if not parameter.is_glu and whole[0].shape[0] % tp:
        fused = concat(whole, 1).coalesced().flatten(0)
        size = fused.shape[0] // tp
        return fused.slice(0, rank * size, (rank + 1) * size).coalesced()
    mine = [part.slice(0, rank * (size := part.shape[0] // tp), (rank + 1) * size) for part in whole]
    if parameter.is_glu:
        return concat(mine if orders.glu is GluOrder.GATE_UP else mine[::-1], 0).coalesced()
    if orders.qkv is QkvLayout.BLOCKS:
        return concat([part.flatten(0) for part in mine], 0).coalesced()
    if orders.qkv is QkvLayout.ALTERNATING:
        mine = [part.flatten(0).unflatten(0, part.shape[0] * part.shape[1], 1) for part in mine]
    return concat(mine, 1).coalesced().flatten(0).coalesced()


def part_of(parameter: Parameter, whole: Sequence[LazyTensor], part: str, tp: int = 1, rank: int = 0) -> LazyTensor:
    """One rank's rows of a single part of a fused parameter (``key``, ``gate``), its groups flattened into rows."""
    tensor = whole[parameter.parts.index(part)]
    size = tensor.shape[0] // tp
    tensor = tensor.slice(0, rank * size, (rank + 1) * size)
    return tensor if parameter.is_glu else tensor.flatten(0).coalesced()
