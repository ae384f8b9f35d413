"""Optional biases of linear layers: which are stored, and which a target has.

A framework has biases only on certain sets of layers (:mod:`streamconv.models.biases`). Biases that the target needs
and the source lacks are written as zeros. From Megatron to transformers, biases that are zero in every element are left
out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.source import Dropped, Fact, StoredModel
from streamconv.formats.target import TargetFormat
from streamconv.models.biases import BY_ENTRY, in_megatron, in_transformers
from streamconv.models.family import ModelFamily
from streamconv.models.fused import gather
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import ModelSizes, ParameterId, Section
from streamconv.planning.gather import Assembly

__all__ = ["Biases", "settle_biases", "stored_as", "stored_biases"]

_MEGATRON = "Megatron has biases on every linear layer, on queries, keys and values alone, or on none"
_TRANSFORMERS = "transformers has a bias on o_proj where it has biases on queries, keys and values"


@dataclass(frozen=True, slots=True)
class Biases:
    """The biases of a target: its family, the keys of biases that are written as zeros, and the keys of stored biases
    that are left out.
    """

    family: ModelFamily
    zeros: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of a ``config.json`` that the target's tensors show to be true."""
        return tuple(entry for entry, pair in BY_ENTRY.items() if self.family.chosen.issuperset(pair))

    def fill(self, assembly: Assembly, model: StoredModel, sizes: ModelSizes) -> None:
        """Add the zeros to the parameters of a model, each in the dtype of the weight beside it."""
        for key in self.zeros:
            for layer in range(model.num_layers):
                bias = ParameterId(Section.LAYER, layer, key)
                weight = model.tensors[bias.beside(f"{key.removesuffix('bias')}weight")][0]
                row = self.family.parameter(bias)
                whole = LazyTensor.zeros(sizes.shape_of(row), weight.dtype)
                assembly.whole[bias] = gather(row, (whole,), sizes, RowOrders())

    def dropped(self, model: StoredModel) -> Iterator[Dropped]:
        """The biases that are left out, and why."""
        if self.left:
            shards = [shard for place, shards in model.tensors.items() if place.key in self.left for shard in shards]
            reason = "zero in every element of every layer: transformers' model goes without"
            what = f"{' and '.join(self.left)} of {model.num_layers} layers"
            yield Dropped(what, sum(shard.nbytes for shard in shards), reason)

    def facts(self, model: StoredModel, target: TargetFormat) -> Iterator[Fact]:
        """Facts about the added zeros, for the plan."""
        if self.zeros:
            what = f"zeros for {' and '.join(self.zeros)} in {model.num_layers} layers"
            yield Fact(what, f"the source has none, and {_MEGATRON if target.is_sharded else _TRANSFORMERS}")


def settle_biases(model: StoredModel, family: ModelFamily, target: TargetFormat, said: Mapping[str, Any]) -> Biases:
    """The biases of the target.

    A training checkpoint gets a set that Megatron can have. From a training checkpoint to transformers, the values of
    the biases are read: a pair that is zero in every bit is left out, unless ``said``, the user's configuration,
    switches it on.

    Raises:
        DamagedError: a record's CRC-32 is not the recorded one.
        StorageError: the system refused to read, or a file has become shorter.
    """
    stored = family.chosen
    if target.is_sharded:
        wanted = in_megatron(stored)
    elif model.config is not None:
        wanted = stored
    else:
        wanted = in_transformers(frozenset(_not_zero(model, stored, said)))
    order = [p.key for p in family.widest if p.section is Section.LAYER and p.key in family.choices]
    return Biases(
        family.having(wanted),
        zeros=tuple(key for key in order if key in wanted - stored),
        left=tuple(key for key in order if key in stored - wanted),
    )


def _not_zero(model: StoredModel, stored: Collection[str], said: Mapping[str, Any]) -> Iterator[str]:
    """The stored biases of each pair that is not all zero, or that the user's configuration switches on."""
    if not stored:
        return
    # Imported here: most plans read no values and need no numpy.
    from streamconv.values.zeros import all_zero

    for entry, pair in BY_ENTRY.items():
        mine = [key for key in pair if key in stored]
        shards = (shard for place, shards in model.tensors.items() if place.key in mine for shard in shards)
        if said.get(entry) is True or not all_zero(shards):
            yield from mine


def stored_biases(model: StoredModel, family: ModelFamily) -> frozenset[str]:
    """The optional biases of a family that a model has in all layers.

    Raises:
        DamagedError: a bias is in only some of the layers, or Megatron cannot have this set.
    """
    by_layer = model.keys_by_layer()
    stored = frozenset(by_layer.get(0, set()) & family.choices)
    for layer, keys in sorted(by_layer.items()):
        for key in sorted((keys & family.choices) ^ stored):
            there, gone = (layer, 0) if key in keys else (0, layer)
            name, other = (_called(model, ParameterId(Section.LAYER, number, key)) for number in (there, gone))
            raise DamagedError(f"{name} is stored, and {other} is not: all layers must be alike", where=model.path)
    if model.config is None:
        _refuse_other_sets(model, family, stored)
    return stored


def _refuse_other_sets(model: StoredModel, family: ModelFamily, stored: frozenset[str]) -> None:
    """Refuse a training checkpoint with biases that Megatron cannot have, or without biases that args require."""
    for key in sorted(in_megatron(stored) - stored):
        name = _called(model, ParameterId(Section.LAYER, 0, key))
        raise DamagedError(
            f"{name} is missing: there are biases on {', '.join(sorted(stored))}",
            where=model.path,
            remedy=_MEGATRON,
        )
    if (model.args or {}).get("add_bias_linear") is True:
        for key in sorted(family.choices - stored):
            raise DamagedError(
                f"args.add_bias_linear is True, and {_called(model, ParameterId(Section.LAYER, 0, key))} is not stored",
                where=model.path,
            )


def stored_as(model: StoredModel, parameter: ParameterId) -> str:
    """The stored name of a parameter, as the end of a message; empty if it is the canonical one."""
    stored = _called(model, parameter)
    return "" if stored in (parameter.name, parameter.key) else f"; stored as {stored}"


def _called(model: StoredModel, parameter: ParameterId) -> str:
    if model.called is not None:
        return model.called(parameter)
    return f"layers.{parameter.layer}.{parameter.key}" if parameter.section is Section.LAYER else parameter.key
