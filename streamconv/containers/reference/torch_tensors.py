"""A file as its format's own reader opened it: its tensors by the names that ours have, as torch has them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from streamconv.containers.reference.mapped_pages import MappedPages
from streamconv.core.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = ["REFUSALS", "ReferenceFile", "refused"]

REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
)
"""What readers raise for files that they do not take; they document none of it."""
_SHOWN = 200


class ReferenceFile(Mapping[str, "torch.Tensor"]):
    """Tensors by their names.

    A tensor is a view of the mapped file, or, if ``is_mapped`` is False, it is read into memory when it is asked for,
    which takes about twice its bytes. ``reader`` is the name of the reader.

    Raises:
        UnsupportedError: when a tensor is asked for that the reader refuses.
    """

    def __init__(
        self,
        path: Path,
        reader: str,
        names: tuple[str, ...],
        load: Callable[[str], torch.Tensor],
        *,
        is_mapped: bool,
    ) -> None:
        self.path, self.reader, self.is_mapped = path, reader, is_mapped
        self._names, self._load = dict.fromkeys(names), load
        self._pages = MappedPages(path) if is_mapped else None

    @classmethod
    def mapped(cls, path: Path, reader: str, tensors: Mapping[str, torch.Tensor]) -> ReferenceFile:
        """A file whose tensors are views of its map."""
        return cls(path, reader, tuple(tensors), tensors.__getitem__, is_mapped=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            return self._load(name)
        except REFUSALS as error:
            raise refused(self.reader, self.path, error) from error

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def give_back(self) -> None:
        """Give back the pages that were looked at."""
        if self._pages is not None:
            self._pages.give_back()


def refused(reader: str, path: Path, error: BaseException) -> UnsupportedError:
    """The error for a file that a reader refuses, with its reason in one line."""
    if isinstance(error, UnpicklingError) and error.__context__ is not None:
        error = error.__context__  # torch wraps the reason into a page of advice
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UnsupportedError(f"{reader} refuses it: {reason[:_SHOWN]}", where=path)
