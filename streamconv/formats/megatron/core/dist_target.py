"""Megatron-Core's ``torch_dist`` container as a target.

``megatron/core/dist_checkpointing/serialization.py:save`` writes to an iteration's folder ``.distcp`` files,
``.metadata``, ``metadata.json``, and the other state as ``common.pt``, or since 40b1fd37c1 (core_v0.19) as the object
``common_state``. The layers of a parameter are one tensor, stacked along its first axis
[``megatron/core/transformer/transformer_block.py:sharded_state_dict``], under Transformer Engine's names. A gated
``linear_fc1`` is stored whole, all of the gate before all of the up [``megatron/core/transformer/mlp.py:
apply_swiglu_sharded_factory``]. Each rank writes the chunks that it holds; copies are written by the first
tensor-parallel rank alone. A reader may cut the tensors otherwise. A module with extra state (of FP8) has an object for
it, which is None here: the linear layers, and with Transformer Engine the attention and the norms. A reader needs the
objects of its own modules, and ignores the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from streamconv.containers.dcp.metadata_reader import NAME as METADATA
from streamconv.containers.dcp.metadata_writer import StoredItem, WholeTensor, metadata_bytes
from streamconv.containers.dcp.writer import ItemKey, plan_distcp_file, torch_bytes
from streamconv.containers.pickles.writer import StoredTensor
from streamconv.core.errors import UnsupportedError
from streamconv.core.layout import RankCoordinates
from streamconv.core.lazy import LazyTensor
from streamconv.formats.megatron.core.names import COMMON_FILE, COMMON_STATE_OBJECT, LINEARS, core_name
from streamconv.formats.megatron.core.options import CoreOptions
from streamconv.formats.megatron.folder import CONFIG_FILE, iteration_name
from streamconv.formats.megatron.releases import COMMON_STATE
from streamconv.formats.target import Slot, TargetFile, TargetModel
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import Parameter, ParameterId, Section

__all__ = ["dist_files"]

# Releases before core_v0.19 need all four, later ones read the first two (core.py:CheckpointingConfig).
_CONFIG = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_ORDERS = RowOrders()
_HEAD_NORMS = ("self_attention.q_layernorm", "self_attention.k_layernorm")

Tree = dict[ItemKey, Any]


def dist_files(
    model: TargetModel[CoreOptions], entries: dict[str, Any], release: int | None
) -> tuple[tuple[TargetFile, ...], dict[str, str | bytes]]:
    """The ``.distcp`` file of each rank, and the small files beside them.

    Args:
        model: the model to lay out.
        entries: the state beside the model (args, iteration).
        release: the Megatron-LM that is to load it, None for any. The common state is an object for a release that
            writes one, and ``common.pt`` for all others.
    """
    layout, folder = model.layout, iteration_name(model.iteration)
    as_object = release is not None and release >= COMMON_STATE
    common: Tree = {(COMMON_STATE_OBJECT, None): torch_bytes([entries])} if as_object else {}
    files: list[TargetFile] = []
    wholes: dict[str, WholeTensor] = {}
    items: list[StoredItem] = []
    for stage in range(layout.pp):
        for rank in range(layout.tp):
            number = stage * layout.tp + rank
            chunks = _Chunks(model, rank)
            tree = {**(common if number == 0 else {}), **chunks.tree(stage)}
            _add_wholes(wholes, chunks.wholes)
            name = f"__{number}_0.distcp"
            files.append(TargetFile(f"{folder}/{name}", plan_distcp_file, RankCoordinates(rank, stage), tree, ""))
            items += _items(name, tree, chunks.shapes)
    small: dict[str, str | bytes] = {
        f"{folder}/{METADATA}": metadata_bytes(wholes, items),
        f"{folder}/{CONFIG_FILE}": json.dumps(_CONFIG),
    }
    if not as_object:
        small[f"{folder}/{COMMON_FILE}"] = torch_bytes(entries, "common")
    return tuple(files), small


def _add_wholes(known: dict[str, WholeTensor], more: Mapping[str, WholeTensor]) -> None:
    """Add whole tensors to those known so far.

    Raises:
        UnsupportedError: chunks of one tensor (layers, halves of a gated unit) have unlike dtypes.
    """
    for name, whole in more.items():
        if (other := known.setdefault(name, whole)).dtype != whole.dtype:
            raise UnsupportedError(
                f"{name} is one tensor in a torch_dist checkpoint, and its parts are {other.dtype} and {whole.dtype}",
                remedy="say --dtype bf16, or another dtype for all",
            )


def _items(file: str, tree: Tree, shapes: dict[ItemKey, StoredTensor]) -> Iterator[StoredItem]:
    """Each item of a file with its offset and size in bytes."""
    keys = {key: number for number, key in enumerate(shapes)}
    leaves = {
        key: StoredTensor(keys[key], shapes[key].dtype, shapes[key].shape) if key in shapes else leaf
        for key, leaf in tree.items()
    }
    for (name, start), offset, nbytes in plan_distcp_file(leaves).items:
        stored = shapes.get((name, start))
        yield StoredItem(file, name, start, None if stored is None else stored.shape, offset, nbytes)


class _Chunks:
    """The chunks that one rank writes, and the whole tensors that they belong to."""

    def __init__(self, model: TargetModel[CoreOptions], rank: int) -> None:
        self.model, self.rank = model, rank
        self.wholes: dict[str, WholeTensor] = {}
        self.shapes: dict[ItemKey, StoredTensor] = {}

    def tree(self, stage: int) -> Tree:
        """The items of a stage's file: objects first, as Megatron-Core writes them, then chunks of tensors."""
        layout, family = self.model.layout, self.model.family
        layers = layout.layers_of(stage)
        is_last = stage == layout.pp - 1
        items: Tree = {}
        if self.rank == 0:
            items |= dict.fromkeys(self._extra_states(layers, is_last=is_last), torch_bytes([None]))
        homes = {
            Section.EMBEDDING: stage == 0,
            Section.FINAL_NORM: is_last,
            Section.HEAD: is_last and self.model.has_head,
        }
        for parameter in family.parameters:
            if parameter.section is Section.LAYER:
                for layer in layers:
                    items |= self.chunks(parameter, layer)
            elif homes[parameter.section]:
                items |= self.chunks(parameter, None)
        return items

    def _extra_states(self, layers: range, *, is_last: bool) -> Iterator[ItemKey]:
        """The keys for all modules that may have extra state: a reader needs those of its own, and ignores the rest."""
        keys = self.model.family.keys(Section.LAYER)
        norms = (norm for norm in _HEAD_NORMS if f"{norm}.weight" in keys)
        for module in (*LINEARS, "self_attention.core_attention", *norms):
            for layer in layers:
                yield f"decoder.layers.{module}._extra_state/shard_{layer}_{self.model.layout.num_layers}", None
        if is_last:
            # Transformer Engine's norm, if installed, with the local spec too [transformer_block.py:LayerNormImpl].
            yield "decoder.final_layernorm._extra_state/shard_0_1", None

    def chunks(self, parameter: Parameter, layer: int | None) -> Tree:
        """The chunks of a parameter that this rank writes: its shard, or each half of it; copies only on rank 0."""
        if parameter.axis is None and self.rank > 0:
            return {}
        parts = parameter.parts if parameter.is_glu else (None,)
        number, stacked = (-1, False) if layer is None else (layer, True)
        slots = [Slot(ParameterId(parameter.section, number, parameter.key), part, stacked=stacked) for part in parts]
        items: Tree = {}
        for index, slot in enumerate(slots):
            tensor = self.model.tensor_of(slot, _ORDERS)
            key = core_name(parameter, None, "te"), self._start(parameter, tensor, layer, index)
            items[key] = slot
            self.shapes[key] = StoredTensor(len(self.shapes), tensor.dtype, tensor.shape)
            whole = WholeTensor(self._whole(parameter, tensor, layer, len(parts)), tensor.dtype)
            _add_wholes(self.wholes, {key[0]: whole})
        return items

    def _start(self, parameter: Parameter, tensor: LazyTensor, layer: int | None, part: int) -> tuple[int, ...]:
        start = [0] * len(tensor.shape)
        if layer is not None:
            start[0] = layer
        if parameter.axis is not None:
            axis = parameter.axis + (layer is not None)
            start[axis] = (part * self.model.layout.tp + self.rank) * tensor.shape[axis]
        return tuple(start)

    def _whole(self, parameter: Parameter, tensor: LazyTensor, layer: int | None, parts: int) -> tuple[int, ...]:
        shape = list(tensor.shape)
        if layer is not None:
            shape[0] = self.model.layout.num_layers
        if parameter.axis is not None:
            shape[parameter.axis + (layer is not None)] *= self.model.layout.tp * parts
        return tuple(shape)
