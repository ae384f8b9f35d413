"""The stack machine that a pickle is a program for, with its dangerous instructions defused.

``GLOBAL`` yields an inert :class:`Global`; ``REDUCE``, ``NEWOBJ`` and ``BUILD`` yield an inert :class:`Record` of
what would have been called and set. A caller may name globals that stand for plain values
(``collections.OrderedDict``) with functions of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamconv.errors import DamagedError, UnsafeError

__all__ = ["MARK", "Builder", "Global", "PickleMachine", "Record", "checked_key"]


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
MARK = object()
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
    """The stack machine of one pickle: ``data``, its name in messages, and what the caller put in for some names."""

    def __init__(
        self, data: bytes, where: str, builders: Mapping[str, Builder], persistent: Callable[[Any], Any] | None
    ) -> None:
        self.data, self.where, self.builders, self.persistent = data, where, builders, persistent
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # -- raw input -------------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        chunk = self.data[self.position : self.position + count]
        if len(chunk) != count:
            raise DamagedError(f"pickle ends at byte {len(self.data)}, {count} more were due", where=self.where)
        self.position += count
        return chunk

    def number(self, layout: str) -> Any:
        """The next number, laid out as ``struct`` writes it."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        """The rest of the line."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise DamagedError("pickle ends inside a line", where=self.where)
        line = self.data[self.position : end]
        self.position = end + 1
        return line

    # -- the stack -------------------------------------------------------------------------------------------------

    def pop_to_mark(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        items: list[Any] = []
        while (value := self.stack.pop()) is not MARK:
            items.append(value)
        items.reverse()
        return items

    def set_items(self, target: Any, pairs: list[Any]) -> None:
        """Set key, value, key, value .. in a dictionary or a record."""
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, dict):
                target[checked_key(key, self.where)] = value
            elif isinstance(target, Record):
                target.items.append((key, value))
            else:
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
        builder = self.builders.get(str(function))
        return Record(function, args) if builder is None else builder(*args)

    def build(self) -> None:
        """Note the state that would be set on a record."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            raise UnsafeError(f"pickle sets the state of a {type(target).__name__}", where=self.where)

    def memoize(self, index: int) -> None:
        """Remember the top of the stack under a number."""
        self.memo[index] = self.stack[-1]

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self, steps: Mapping[bytes, Callable[[PickleMachine], Any]]) -> Any:
        """The value that the pickle stands for, with ``steps`` as its instructions."""
        try:
            while True:
                code = self.take(1)
                if code == b".":
                    return self.stack.pop()
                step = steps.get(code)
                if step is None:
                    raise UnsafeError(f"pickle instruction {code!r} at byte {self.position - 1}", where=self.where)
                step(self)
        except (LookupError, ValueError, TypeError, struct.error, ArithmeticError, RecursionError) as error:
            raise DamagedError(
                f"pickle is broken at byte {self.position}: {type(error).__name__}: {error}", where=self.where
            ) from error
