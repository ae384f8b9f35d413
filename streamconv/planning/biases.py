"""Biases of linear layers that a model may have or not: which are stored, and what becomes of them in a target.

A framework has them on some sets of layers alone (:mod:`streamconv.models.biases`). What the target's set has beyond
the source's is written as zeros. On the way back to transformers, biases that are zero in every element stay behind.
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
    """What becomes of a model's biases: the family as the target has it, the keys of those that are written as zeros,
    and of those that stay behind.
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
        """Those that stay behind, and why."""
        if self.left:
            shards = [shard for found, shards in model.tensors.items() if found.key in self.left for shard in shards]
            reason = "zero in every element of every layer: transformers' model goes without"
            what = f"{' and '.join(self.left)} of {model.num_layers} layers"
            yield Dropped(what, sum(shard.nbytes for shard in shards), reason)

    def facts(self, model: StoredModel, target: TargetFormat) -> Iterator[Fact]:
        """What a plan says of them."""
        if self.zeros:
            what = f"zeros for {' and '.join(self.zeros)} in {model.num_layers} layers"
            yield Fact(what, f"the source has none, and {_MEGATRON if target.is_sharded else _TRANSFORMERS}")


def settle_biases(model: StoredModel, family: ModelFamily, target: TargetFormat, said: Mapping[str, Any]) -> Biases:
    """Decide which biases the target has.

    Training checkpoints have what Megatron can have. Where one goes to transformers, the values of its biases are read:
    a pair that is zero in every bit stays behind, unless ``said``, the user's configuration, says that the model has
    it.

    Raises:
        DamagedError: a file ends early, or a record's CRC-32 is not the recorded one.
        StorageError: the system refused to read.
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
    """The stored biases of each pair of which an element of one is not zero, or that is said to be the model's."""
    if not stored:
        return
    # Here, because most plans look at no values and need no numpy.
    from streamconv.values.zeros import all_zero

    for entry, pair in BY_ENTRY.items():
        mine = [key for key in pair if key in stored]
        shards = (shard for found, shards in model.tensors.items() if found.key in mine for shard in shards)
        if said.get(entry) is True or not all_zero(shards):
            yield from mine


def stored_biases(model: StoredModel, family: ModelFamily) -> frozenset[str]:
    """The biases that a family may have or not, and this model has in all layers.

    Raises:
        DamagedError: one is in some of the layers alone, or there are others than Megatron can have.
    """
    by_layer = model.keys_by_layer()
    found = frozenset(by_layer.get(0, set()) & family.choices)
    for layer, keys in sorted(by_layer.items()):
        for key in sorted((keys & family.choices) ^ found):
            there, gone = (layer, 0) if key in keys else (0, layer)
            name, other = (_called(model, ParameterId(Section.LAYER, number, key)) for number in (there, gone))
            raise DamagedError(f"{name} is stored, and {other} is not: all layers must be alike", where=model.path)
    if model.config is None:
        _refuse_other_sets(model, family, found)
    return found


def _refuse_other_sets(model: StoredModel, family: ModelFamily, found: frozenset[str]) -> None:
    """Refuse a training checkpoint with biases that Megatron's model cannot have, or without those that args name."""
    for key in sorted(in_megatron(found) - found):
        name = _called(model, ParameterId(Section.LAYER, 0, key))
        raise DamagedError(
            f"{name} is missing: there are biases on {', '.join(sorted(found))}",
            where=model.path,
            remedy=_MEGATRON,
        )
    if (model.args or {}).get("add_bias_linear") is True:
        for key in sorted(family.choices - found):
            raise DamagedError(
                f"args.add_bias_linear is True, and {_called(model, ParameterId(Section.LAYER, 0, key))} is not stored",
                where=model.path,
            )


def stored_as(model: StoredModel, parameter: ParameterId) -> str:
    """The name that a parameter is stored by, for the end of a message; nothing if it is the canonical one."""
    stored = _called(model, parameter)
    return "" if stored in (parameter.name, parameter.key) else f"; stored as {stored}"


def _called(model: StoredModel, parameter: ParameterId) -> str:
    if model.called is not None:
        return model.called(parameter)
    return f"layers.{parameter.layer}.{parameter.key}" if parameter.section is Section.LAYER else parameter.key
