"""The stack machine that runs a pickle, with its dangerous instructions defused.

``GLOBAL`` yields an inert :class:`Global`; ``REDUCE``, ``NEWOBJ`` and ``BUILD`` yield an inert :class:`Record` of
what would have been called and set. For globals that make plain values (``collections.OrderedDict``) a caller may
supply functions of its own.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamconv.core.effort import Effort
from streamconv.core.errors import DamagedError, UnsafeError

__all__ = ["Builder", "Global", "PickleMachine", "Record", "Step", "checked_key"]


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names. It was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)
class Record:
    """An object that the pickle would have built: the call, its arguments, and the state that would have been set."""

    cls: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        """The call, cut: what a record holds may hold as much again."""
        words = [repr(arg)[:_SHOWN] if isinstance(arg, _SIMPLE) else f"a {type(arg).__name__}" for arg in self.args[:4]]
        return f"{str(self.cls)[:_SHOWN]}({', '.join([*words, '..'] if len(self.args) > 4 else words)})"

    @property
    def attributes(self) -> dict[str, Any]:
        """The instance's attributes: the entries of the state with string keys, if it is a dictionary."""
        if isinstance(self.state, dict):
            return {name: value for name, value in self.state.items() if isinstance(name, str)}
        return {}


Builder = Callable[..., Any]
Step = Callable[["PickleMachine", int], int]
"""One instruction: it takes the position after its byte, and returns the position of the next instruction."""

_STOP = ord(".")
_LARGEST_KEY = 64
# Among numbers of more bits many hash alike, and a dictionary compares each with all the others.
_LARGEST_KEY_BITS = 64
_SHOWN = 80
_COPIED = (list, tuple)
_SIMPLE = (str, int, float, bytes, type(None))


def checked_key(key: Any, where: str) -> Any:
    """The key itself, if it is safe to hash; otherwise an :class:`UnsafeError` is raised.

    Hashing a tuple nested a million deep would overflow the C stack, and hashing one that contains the same tuple many
    times over on each level would take years; no checkpoint has such a key.
    """
    items, seen = [key], 0
    while items:
        item = items.pop()
        seen += 1
        if isinstance(item, tuple) and seen + len(items) + len(item) <= _LARGEST_KEY:
            items += item
        elif not isinstance(item, str | int | float | bytes | Global | Record | None):
            raise UnsafeError(f"pickle uses a {type(item).__name__} as a dictionary key", where=where)
        elif isinstance(item, int) and item.bit_length() > _LARGEST_KEY_BITS:
            raise UnsafeError(f"pickle uses a number of {item.bit_length()} bits as a dictionary key", where=where)
    return key


class PickleMachine:
    """The stack machine of one pickle: ``data``, its limits, and the caller's functions for some globals.

    ``room`` is the number of objects that it may still make. ``stack`` contains the values above the last mark; those
    below it are the last item of ``below``. ``named`` contains each global that the pickle names, once; ``called``
    contains the global of each call.
    """

    __slots__ = ("below", "builders", "called", "data", "effort", "end", "memo", "named", "persistent", "room", "stack")

    def __init__(
        self,
        data: bytes,
        effort: Effort,
        builders: Mapping[str, Builder],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.data, self.effort, self.builders, self.persistent = data, effort, builders, persistent
        self.room = effort.objects
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.named: dict[tuple[str, str], Global] = {}
        self.called: list[Global] = []
        self.end = 0

    @property
    def where(self) -> str:
        """The file's name in messages."""
        return self.effort.where

    def spend(self, objects: int) -> None:
        """Count objects that the pickle makes.

        Raises:
            UnsafeError: they are more than its size allows.
        """
        self.room -= objects
        if self.room < 0:
            raise self.effort.too_many_objects()

    # -- raw input -------------------------------------------------------------------------------------------------

    def line(self, position: int) -> tuple[bytes, int]:
        """The rest of the line, and where the next one begins."""
        end = self.data.find(b"\n", position)
        if end < 0:
            raise self.ended(f"the line from byte {position} is open")
        return self.data[position:end], end + 1

    def ended(self, what: str) -> DamagedError:
        """The error for a pickle that is cut off."""
        return DamagedError(f"pickle ends at byte {len(self.data)}, {what}", where=self.where)

    def remember(self, index: int) -> None:
        """Keep the value on top of the stack, to be recalled by a number."""
        self.memo[index] = self.stack[-1]
        if len(self.memo) > self.effort.objects:
            raise self.effort.too_many_objects()

    # -- the stack -------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """Set a mark: begin a new stack above it."""
        self.below.append(self.stack)
        self.stack = []

    def name(self, module: str, name: str) -> Global:
        """A class or function as an inert value, the same object each time."""
        value = self.named.get((module, name))
        if value is None:
            self.spend(2)
            value = self.named[module, name] = Global(module, name)
        return value

    def pop_to_mark(self) -> list[Any]:
        """Remove the last mark and everything above it, which is returned."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def set_items(self, target: Any, pairs: list[Any]) -> None:
        """Set key, value, key, value .. in a dictionary or a record."""
        rows = zip(pairs[::2], pairs[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in rows:
                target[key if type(key) is str else checked_key(key, self.where)] = value
        elif isinstance(target, Record):
            target.items.extend(rows)
        elif pairs:
            raise DamagedError(f"pickle sets an item of a {type(target).__name__}", where=self.where)

    def append(self, target: Any, values: list[Any]) -> None:
        """Append values to a list or a record."""
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Record):
            target.items.extend(values)
        else:
            raise DamagedError(f"pickle appends to a {type(target).__name__}", where=self.where)

    def call(self, function: Any, args: Any) -> Any:
        """The result of a call: that of the caller's function for it, or an inert record."""
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise UnsafeError(f"pickle calls a {type(function).__name__}", where=self.where)
        self.called.append(function)
        builder = self.builders.get(f"{function.module}.{function.name}")
        if builder is None:
            self.spend(1)
            return Record(function, args)
        # A builder copies its arguments and what they hold, which may be the same objects in each call.
        self.spend(1 + len(args) + sum([len(arg) for arg in args if type(arg) in _COPIED]))
        return builder(*args)

    def build(self) -> None:
        """Keep the state that would be set on a record."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            raise UnsafeError(f"pickle sets the state of a {type(target).__name__}", where=self.where)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step | None], start: int = 0) -> Any:
        """Run the pickle that begins at ``start``; returns its value.

        ``steps`` contains the instructions by their byte. Afterwards ``end`` is the position where the pickle ended.
        """
        data, position = self.data, start
        try:
            while (code := data[position]) != _STOP:
                step = steps[code]
                if step is None:
                    raise UnsafeError(f"pickle instruction {bytes((code,))!r} at byte {position}", where=self.where)
                position = step(self, position + 1)
            self.end = position + 1
            return self.stack.pop()
        except (LookupError, ValueError, TypeError, struct.error, ArithmeticError, RecursionError) as error:
            if position >= len(data):
                raise self.ended("an instruction was due") from error
            raise DamagedError(
                f"pickle is broken at byte {position}: {type(error).__name__}: {error}", where=self.where
            ) from error

    def count_into(self, named: dict[Global, int]) -> None:
        """Add to ``named`` each global of this pickle, with the number of calls of it."""
        # Counted by identity: a global is one object here, and hashing its names for each call is slower.
        calls = Counter(map(id, self.called))
        for value in self.named.values():
            named[value] = named.get(value, 0) + calls[id(value)]
