"""Tensors in the pickles of ``torch.save``, rebuilt as lazy tensors without torch.

A tensor in such a pickle is a call of ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ..)`` whose
storage is a persistent id ``("storage", class, key, location, numel, ..)``. The zip and the older format share this;
each locates the bytes of a storage in its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from operator import mul
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Builder, Global, checked_key
from streamconv.core.dtypes import DType, dtype_from_storage, dtype_named
from streamconv.core.effort import LARGEST_SIZE, MOST_AXES
from streamconv.core.errors import DamagedError, UnsafeError, UnsupportedError
from streamconv.core.lazy import LazyTensor, View
from streamconv.core.text import shown
from streamconv.core.views import Storage

__all__ = ["StorageId", "StorageRef", "TorchBuilders", "storage_id"]


@dataclass(slots=True, eq=False)
class StorageRef:
    """A located storage that a pickle refers to; ``dtype`` is None for untyped bytes."""

    storage: Storage
    dtype: DType | None


@dataclass(frozen=True, slots=True)
class StorageId:
    """A persistent id of a storage of ``numel`` elements; ``rest`` is what follows the five usual parts."""

    dtype: DType | None
    key: str
    numel: int
    rest: tuple[Any, ...]

    @property
    def itemsize(self) -> int:
        """Bytes per element: an untyped storage counts bytes."""
        return self.dtype.itemsize if self.dtype else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.itemsize


def storage_id(identifier: Any, path: Path) -> StorageId:
    """Parse and check a persistent id ("storage", class, key, location, numel, ..).

    Raises:
        UnsafeError: it refers to something that is no storage.
        UnsupportedError: the storage is of a class that is not known.
        DamagedError: its number of elements is negative.
        ValueError: it has too few parts; the pickle machine turns this into a :class:`DamagedError`.
    """
    tag, cls, key, _, numel, *rest = identifier
    known = isinstance(tag, str) and tag == "storage" and isinstance(cls, Global) and isinstance(numel, int)
    if not known or not isinstance(key, str):
        raise UnsafeError("pickle refers to data outside itself that is no storage", where=path)
    dtype = dtype_from_storage(cls.name)
    if dtype is None and cls.name != "UntypedStorage":
        raise UnsupportedError(f"storage of class {cls}", where=path)
    if numel < 0:
        raise DamagedError(f"storage {key[:40]} has {numel} elements", where=path)
    return StorageId(dtype, key, numel, tuple(rest))


class TorchBuilders:
    """Functions that replace torch's own, for one file; ``where`` is its name in messages."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where

    def table(self) -> dict[str, Builder]:
        """The functions by the names that a pickle calls."""
        builders: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self.ordered,
            "torch.Size": lambda sizes: tuple(sizes),
            "torch._utils._rebuild_tensor": self.rebuild,
            "torch._utils._rebuild_tensor_v2": self.rebuild,
            "torch._utils._rebuild_tensor_v3": lambda s, o, n, t, g, h, dtype, *m: self.rebuild(
                s, o, n, t, g, h, *m, dtype=dtype
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        }
        known = {name: builder for name, builder in builders.items() if name.startswith("torch._utils.")}

        def wrapped(function: Any, cls: Any, args: Any, _: Any) -> Any:
            """A tensor with Python attributes: the function, the class, its arguments, the attributes."""
            if str(function) not in known:
                raise UnsupportedError(
                    f"a tensor of the class {shown(str(cls), 80)}, which is made by {shown(str(function), 80)}",
                    where=self.where,
                    remedy="save torch's own tensors: of a DTensor .full_tensor(), or .to_local()",
                )
            return known[str(function)](*args)

        builders["torch._tensor._rebuild_from_type_v2"] = wrapped
        return builders

    def ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        """The plain dictionary for ``OrderedDict(pairs)``."""
        return {key if type(key) is str else checked_key(key, self.where): value for key, value in pairs}

    def rebuild(
        self,
        ref: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
        *,
        dtype: Any = None,
    ) -> LazyTensor:
        """A tensor as a view of its storage, checked to lie inside it."""
        if not isinstance(ref, StorageRef):
            raise UnsafeError("a tensor without a storage", where=self.path)
        kind = dtype_named(dtype.name) if isinstance(dtype, Global) else ref.dtype
        if kind is None:
            raise UnsupportedError(f"a tensor of an unknown dtype in {ref.storage.name}", where=self.path)
        if metadata:
            raise UnsupportedError(
                f"a tensor in {ref.storage.name} is marked as conjugated or negated: its bytes are not its values",
                where=self.path,
                remedy="save it again after .resolve_conj().resolve_neg()",
            )
        if len(size) > MOST_AXES:
            raise UnsafeError(f"a tensor in {ref.storage.name} has {len(size)} axes", where=self.path)
        numbers = (offset, *size, *stride)
        if (
            len(size) != len(stride)
            or set(map(type, numbers)) != {int}
            or not 0 <= min(numbers) <= max(numbers) <= LARGEST_SIZE
        ):
            raise DamagedError(f"a tensor in {ref.storage.name} has no valid offset, size and stride", where=self.path)
        if prod(filter(None, size)) * kind.itemsize > LARGEST_SIZE:
            raise UnsafeError(
                f"a tensor in {ref.storage.name} of {len(size)} axes has 2^63 bytes or more", where=self.path
            )
        last = offset + sum(map(mul, size, stride)) - sum(stride) + 1
        if 0 not in size and last * kind.itemsize > ref.storage.nbytes:
            raise DamagedError(
                f"tensor of size {tuple(size)} at {offset} ends behind its record {ref.storage.name} "
                f"of {ref.storage.nbytes} bytes",
                where=self.path,
            )
        # Along an axis of one element nothing steps, and what is recorded there may be any number.
        steps = [step if step <= ref.storage.nbytes else 0 for step in stride]
        return LazyTensor.stored(View(ref.storage, kind, offset, tuple(steps)), size)
