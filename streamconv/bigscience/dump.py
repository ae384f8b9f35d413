"""The lines of ``inspect_checkpoint``: every value in a file, with the keys that lead to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from streamconv.bigscience.python_text import one_line, size_text, text_of
from streamconv.core.effort import DEEPEST
from streamconv.core.errors import UnsafeError
from streamconv.core.lazy import LazyTensor

__all__ = ["dump_lines"]

# A line has all keys that lead to its value. An honest file's lines have some ten times its pickle's characters.
_FEW, _PER_BYTE = 16 << 20, 64
# Where DeepSpeed's engine records ``param.shape``, so that a tuple of integers is a torch.Size, if the file names that
# class at all: with experts the shapes are tuples
# [deepspeed/runtime/engine.py: _get_zero_param_shapes, _get_zero_frozen_param_attributes].
_SIZES = ("param_shapes", "frozen_param_shapes")


def dump_lines(state: Any, where: str, nbytes: int, *, has_sizes: bool) -> Iterator[str]:
    """A line for each value in nested dictionaries, lists and tuples: its keys, and its shape or the value itself.

    These are the lines of ``dump_data`` in ``tools/convert_checkpoint/inspect_checkpoint.py`` of Megatron-DeepSpeed:
    positions in lists and tuples are not part of a name.

    Args:
        state: a file's value.
        where: the file's name in messages.
        nbytes: the file's size, which limits what is printed of it.
        has_sizes: whether the file's pickle names torch.Size.

    Raises:
        UnsafeError: values are nested too deep, or their names are too long.
    """
    room = _FEW + _PER_BYTE * nbytes
    for line in _Dump(where, _SIZES if has_sizes else ()).lines(state, (), 0, sizes=False):
        room -= len(line)
        if room < 0:
            raise UnsafeError(f"more than {_FEW + _PER_BYTE * nbytes} characters in {nbytes} bytes", where=where)
        yield line


class _Dump:
    def __init__(self, where: str, sizes: Collection[str]) -> None:
        self.where, self.sizes = where, sizes

    def lines(self, value: Any, names: tuple[str, ...], depth: int, *, sizes: bool) -> Iterator[str]:
        if depth > DEEPEST:
            raise UnsafeError(f"values nested deeper than {DEEPEST}", where=self.where)
        if isinstance(value, dict):
            for key, item in value.items():
                below = sizes or (not names and key in self.sizes)
                yield from self.lines(item, (*names, one_line(text_of(key, self.where))), depth + 1, sizes=below)
        elif isinstance(value, list | tuple) and not _is_size(value, sizes=sizes):
            for item in value:
                yield from self.lines(item, names, depth + 1, sizes=sizes)
        elif isinstance(value, LazyTensor):
            yield f"[tensor] {'.'.join(names)} = {size_text(value.shape)}"
        else:
            words = size_text(value) if isinstance(value, tuple) else text_of(value, self.where)
            yield f"[other] {'.'.join(names)} = {words}"


def _is_size(value: Any, *, sizes: bool) -> bool:
    """Whether a value is a torch.Size: of a subclass of tuple, or a tuple of integers where only sizes occur."""
    if type(value) is tuple:
        return sizes and all(type(item) is int for item in value)
    return isinstance(value, tuple)
