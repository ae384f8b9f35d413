"""The stack machine that a pickle is a program for, with its dangerous instructions defused.

``GLOBAL`` yields an inert :class:`Global`; ``REDUCE``, ``NEWOBJ`` and ``BUILD`` yield an inert :class:`Record` of
what would have been called and set. A caller may name globals that stand for plain values
(``collections.OrderedDict``) with functions of its own.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from streamconv.core.errors import DamagedError, UnsafeError

__all__ = ["Builder", "Global", "PickleMachine", "Record", "Step", "checked_key"]


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names. It was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An object that the pickle would have built: what it would have called, with what, and the state it would set."""

    cls: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def attributes(self) -> dict[str, Any]:
        """The instance's attributes, as far as the state is a plain dictionary of names."""
        if isinstance(self.state, dict):
            return {name: value for name, value in self.state.items() if isinstance(name, str)}
        return {}


Builder = Callable[..., Any]
Step = Callable[["PickleMachine", int], int]
"""One instruction: it is given the place behind its byte, and gives the place of the next instruction."""

_STOP = ord(".")
_LARGEST_KEY = 64


def checked_key(key: Any, where: str) -> Any:
    """A dictionary key, if it is one that is safe to hash.

    A tuple nested a million deep would overflow the C stack when hashed, and one that holds itself many times over
    would be hashed for years; no checkpoint has such a key.
    """
    items, seen = [key], 0
    while items:
        item = items.pop()
        seen += 1
        if isinstance(item, tuple) and seen + len(items) + len(item) <= _LARGEST_KEY:
            items += item
        elif not isinstance(item, str | int | float | bytes | Global | Record | None):
            raise UnsafeError(f"pickle uses a {type(item).__name__} as a dictionary key", where=where)
    return key


class PickleMachine:
    """The stack machine of one pickle: ``data``, its name in messages, and what the caller put in for some names.

    ``stack`` reaches down to the last mark; what lies below it is the last of ``below``. ``named`` has each global
    that the pickle names, once; ``called`` has one of them for each call.
    """

    __slots__ = ("below", "builders", "called", "data", "end", "memo", "named", "persistent", "stack", "where")

    def __init__(
        self, data: bytes | mmap, where: str, builders: Mapping[str, Builder], persistent: Callable[[Any], Any] | None
    ) -> None:
        self.data, self.where, self.builders, self.persistent = data, where, builders, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.named: dict[tuple[str, str], Global] = {}
        self.called: list[Global] = []
        self.end = 0

    # -- raw input -------------------------------------------------------------------------------------------------

    def line(self, position: int) -> tuple[bytes, int]:
        """The rest of the line, and where the next one begins."""
        end = self.data.find(b"\n", position)
        if end < 0:
            raise self.ended(f"the line from byte {position} is open")
        return self.data[position:end], end + 1

    def ended(self, what: str) -> DamagedError:
        """The error that says that the pickle is cut off."""
        return DamagedError(f"pickle ends at byte {len(self.data)}, {what}", where=self.where)

    # -- the stack -------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """Begin a stack of its own."""
        self.below.append(self.stack)
        self.stack = []

    def name(self, module: str, name: str) -> Global:
        """A class or function as an inert value, the same one each time."""
        found = self.named.get((module, name))
        if found is None:
            found = self.named[module, name] = Global(module, name)
        return found

    def pop_to_mark(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
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
        """What a call would give: a builder of the caller's, or an inert record."""
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise UnsafeError(f"pickle calls a {type(function).__name__}", where=self.where)
        self.called.append(function)
        builder = self.builders.get(f"{function.module}.{function.name}")
        return Record(function, args) if builder is None else builder(*args)

    def build(self) -> None:
        """Note the state that would be set on a record."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            raise UnsafeError(f"pickle sets the state of a {type(target).__name__}", where=self.where)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step | None], start: int = 0) -> Any:
        """The value of the pickle that begins at ``start``, with ``steps`` as its instructions by their byte.

        ``end`` is where it ended.
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
        """Add each global that was named, with how often it was called."""
        # By identity: a global is one object here, and hashing each call by its names would take longer.
        calls = Counter(map(id, self.called))
        for value in self.named.values():
            named[value] = named.get(value, 0) + calls[id(value)]
