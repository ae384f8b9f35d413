"""Tensors of zeros that only one side has: a target must have them, and its source lacks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from streamconv.formats.common.layer_numbers import place_of
from streamconv.values.zeros import all_zero
from streamconv.verification.side import Side

__all__ = ["without_zeros"]


def without_zeros(names: Sequence[str], side: Side, other: Side, where: tuple[str, str]) -> tuple[list[str], list[str]]:
    """``names`` without the tensors that are zero in every bit and that a model of the other's family may lack, and
    notes that name these.

    Args:
        names: the tensors that only ``side`` has.
        side: one side.
        other: the other one.
        where: the names of the two sides in the notes.

    Raises:
        DamagedError: a record's CRC-32 is not the recorded one.
        StorageError: the system refused to read, or a file has become shorter.
    """
    lacking = [name for name in names if {name, name.rpartition(".")[0]} & other.lacks]
    zero = {name for name in lacking if all_zero([side.tensors[name]])}
    layers = Counter(place_of(name)[1] for name in names if name in zero)
    notes = [
        f"{key}: zero in every element of {count} layers in {where[0]}, not stored in {where[1]}"
        for key, count in layers.items()
    ]
    return [name for name in names if name not in zero], notes
