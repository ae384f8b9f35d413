"""Make the tensor for each slot of the files that a target lays out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from streamconv.containers.pickles.writer import StoredTensor
from streamconv.core.dtypes import DType
from streamconv.core.errors import UnsupportedError, UsageError
from streamconv.core.layout import FIRST_RANK, RankCoordinates
from streamconv.core.lazy import LazyTensor
from streamconv.core.low_rank import LowRank
from streamconv.formats.target import FileLayout, NameSlot, Slot, TargetFile, TargetFiles
from streamconv.models.family import ModelFamily
from streamconv.models.fused import part_of, shard
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import QKV, Parameter, ParameterId
from streamconv.planning.gather import Assembly
from streamconv.planning.plan import OutputFile, OutputTensor

__all__ = ["Filler", "OutputValue", "filled_files"]


class Filler:
    """Makes target tensors from canonical ones.

    Args:
        assembly: the canonical parameters.
        family: the family of the model.
        tp: the target's tensor-parallel size.
        dtype: the dtype that floating tensors are cast to, None if they are not cast.
    """

    def __init__(self, assembly: Assembly, family: ModelFamily, tp: int, dtype: DType | None) -> None:
        self.assembly, self.family, self.tp, self.dtype = assembly, family, tp, dtype

    def tensor(self, slot: Slot, orders: RowOrders, rank: RankCoordinates = FIRST_RANK) -> LazyTensor:
        """The tensor of a slot on a rank.

        Raises:
            UsageError: the parameter does not divide over the ranks.
            UnsupportedError: its parts have unlike dtypes, are fused in this slot, and are not cast.
        """
        parameter = self.family.parameter(slot.parameter)
        whole = self.assembly.whole[slot.parameter]
        if self.dtype is not None:
            whole = tuple(tensor.cast(self.dtype) for tensor in whole)
        elif slot.part is None:
            _refuse_unlike(parameter, slot.parameter.name, whole)
        self._refuse_rest(parameter, slot.parameter.name, whole)
        if slot.part is not None:
            tensor = part_of(parameter, whole, slot.part, self.tp, rank.tp)
        else:
            tensor = shard(parameter, whole, self.tp, rank.tp, orders)
        if slot.transposed:
            tensor = tensor.permute(*reversed(range(len(tensor.shape))))
        if slot.stacked:
            tensor = tensor.unflatten(0, 1, tensor.shape[0])
        return tensor

    def _refuse_rest(self, parameter: Parameter, name: str, whole: Sequence[LazyTensor]) -> None:
        """Refuse rows that do not divide over the ranks. Groups of heads that do not divide are cut by rows."""
        if parameter.axis is None:
            return
        rows = [tensor.shape[parameter.axis] for tensor in whole]
        if parameter.parts == QKV and rows[0] % self.tp:
            rows = [rows[0] * sum(tensor.shape[1] for tensor in whole)] if len(whole) > 1 else rows
        for count in rows:
            if count % self.tp:
                raise UsageError(f"{name}: {count} does not divide over TP {self.tp}", remedy="choose another --tp")

    def fill(self, laid_out: TargetFiles) -> tuple[tuple[OutputFile, ...], list[tuple[str, LazyTensor]]]:
        """The output files with the tensor of each storage, and all target tensors with their roles in the proof."""
        roles: list[tuple[str, LazyTensor]] = []
        uses: dict[tuple[RankCoordinates, Slot], int] = defaultdict(int)

        def made(slot: Any, rank: RankCoordinates) -> OutputValue:
            tensor = self.tensor(slot, laid_out.orders, rank)
            uses[replace(rank, pp=0), slot] += 1
            roles.append((self._role(slot, rank, uses[replace(rank, pp=0), slot]), tensor))
            return OutputValue(slot.parameter, tensor)

        return filled_files(laid_out.files, made), roles

    def _role(self, slot: Slot, rank: RankCoordinates, copy: int) -> str:
        """The name of the group that is proved together: all shards and parts of a parameter; each copy is a group."""
        is_cut = self.family.parameter(slot.parameter).axis is not None
        return f"{slot.parameter.name}, copy {copy}" + ("" if is_cut else f" on rank {rank.tp}")


def _refuse_unlike(parameter: Parameter, name: str, whole: Sequence[LazyTensor]) -> None:
    """Refuse to fuse parts of unlike dtypes: one tensor of a file has one."""
    if len({tensor.dtype for tensor in whole}) > 1:
        parts = ", ".join(f"{part} {tensor.dtype}" for part, tensor in zip(parameter.parts, whole, strict=True))
        raise UnsupportedError(
            f"{name} is stored in parts of unlike dtypes ({parts}), and the target has them in one tensor",
            remedy="say --dtype bf16, or another dtype for all",
        )


AnySlot = Slot | NameSlot


class OutputValue(NamedTuple):
    """What a slot is filled with: its parameter, the tensor, and what is added to that, if anything."""

    parameter: ParameterId
    tensor: LazyTensor
    update: LowRank | None = None


Made = Callable[[Any, RankCoordinates], OutputValue]


def filled_files(files: Iterable[TargetFile], made: Made) -> tuple[OutputFile, ...]:
    """The output files with the tensor of each storage.

    Args:
        files: as a target laid them out.
        made: returns what fills a slot on a rank; called once for each storage.
    """
    result: list[OutputFile] = []
    layouts: dict[tuple[int, tuple[StoredTensor, ...]], FileLayout] = {}
    names: dict[int, dict[AnySlot, tuple[str, ...]]] = {}
    for file in files:
        slots: dict[AnySlot, StoredTensor] = {}
        entries: list[OutputTensor] = []
        if id(file.tree) not in names:
            names[id(file.tree)] = _names(file)
        for slot, slot_names in names[id(file.tree)].items():
            parameter, tensor, update = made(slot, file.rank)
            slots[slot] = StoredTensor(len(slots), tensor.dtype, tensor.shape)
            entries.append(OutputTensor(slot_names, parameter, tensor, update))
        # Ranks that share a tree differ only in the bytes of their tensors, so they share its layout.
        key = id(file.tree), tuple(slots.values())
        if key not in layouts:
            layouts[key] = file.container(_filled(file.tree, slots))
        result.append(OutputFile(file.path, file.rank, layouts[key], tuple(entries)))
    return tuple(result)


def _names(file: TargetFile) -> dict[AnySlot, tuple[str, ...]]:
    """The slots of a file in the order of its tree, with their names in the model's state dict."""
    names: dict[AnySlot, tuple[str, ...]] = {}
    for path, slot in _slots(file.tree):
        names[slot] = (*names.get(slot, ()), path.removeprefix(f"{file.model}.") if file.model else path)
    return names


def _slots(tree: Any, path: str = "") -> Iterator[tuple[str, AnySlot]]:
    """(dotted path, slot) of every slot among the leaves, in the order of the tree."""
    if isinstance(tree, AnySlot):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            name = _word(key)
            yield from _slots(value, f"{path}.{name}" if path else name)


def _word(key: Any) -> str:
    """A key of a tree as text; a chunk of a tensor is shown with its start in each axis: ``w[0:, 24:, 0:]``."""
    if not isinstance(key, tuple):
        return str(key)
    name, start = key
    return f"{name}[{', '.join(f'{first}:' for first in start or ())}]"


def _filled(tree: Any, slots: Mapping[AnySlot, StoredTensor]) -> Any:
    if isinstance(tree, AnySlot):
        return slots[tree]
    if isinstance(tree, dict):
        return type(tree)((key, _filled(value, slots)) for key, value in tree.items())
    return tree
