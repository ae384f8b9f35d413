"""Read a pickle without importing or calling anything that it names.

A pickle is a program for a small stack machine. This is that machine with its dangerous instructions defused:
``GLOBAL`` yields an inert :class:`Global`, and ``REDUCE``, ``NEWOBJ`` and ``BUILD`` yield an inert :class:`Record` of
what would have been called and set. A caller may name globals that stand for plain values
(``collections.OrderedDict``) with functions of its own. The instruction set is that of the standard library's
``pickletools``, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamconv.errors import DamagedError, UnsafeError

__all__ = ["MAX_PICKLE_NBYTES", "Global", "Record", "loads", "walk"]

MAX_PICKLE_NBYTES = 64 << 20
_MAX_DEPTH = 200


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
_MARK = object()


class _Machine:
    def __init__(
        self, data: bytes, where: str, builders: Mapping[str, Builder], persistent: Callable[[Any], Any] | None
    ) -> None:
        self.data, self.where, self.builders, self.persistent = data, where, builders, persistent
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # -- raw input -------------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        chunk = self.data[self.position : self.position + count]
        if len(chunk) != count:
            raise DamagedError(f"pickle ends at byte {len(self.data)}, {count} more were due", where=self.where)
        self.position += count
        return chunk

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise DamagedError("pickle ends inside a line", where=self.where)
        text = self.data[self.position : end].decode("utf-8", "surrogateescape")
        self.position = end + 1
        return text

    # -- the stack -------------------------------------------------------------------------------------------------

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def checked_key(self, key: Any, depth: int = 0) -> Any:
        # A tuple nested a million deep would overflow the C stack when hashed; no checkpoint has such a key.
        if isinstance(key, tuple) and depth < 8:
            for item in key:
                self.checked_key(item, depth + 1)
        elif not isinstance(key, str | int | float | bytes | Global | Record | None):
            raise UnsafeError(f"pickle uses a {type(key).__name__} as a dictionary key", where=self.where)
        return key

    def set_items(self, target: Any, pairs: list[Any]) -> None:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, dict):
                target[self.checked_key(key)] = value
            elif isinstance(target, Record):
                target.items.append((key, value))
            else:
                raise DamagedError(f"pickle sets an item of a {type(target).__name__}", where=self.where)

    def append(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Record):
            target.items.extend(values)
        else:
            raise DamagedError(f"pickle appends to a {type(target).__name__}", where=self.where)

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise UnsafeError(f"pickle calls a {type(function).__name__}", where=self.where)
        builder = self.builders.get(str(function))
        return Record(function, args) if builder is None else builder(*args)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            raise UnsafeError(f"pickle sets the state of a {type(target).__name__}", where=self.where)

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        try:
            while True:
                code = self.take(1)
                if code == b".":
                    return self.stack.pop()
                step = _STEPS.get(code)
                if step is None:
                    raise UnsafeError(f"pickle instruction {code!r} at byte {self.position - 1}", where=self.where)
                step(self)
        except (IndexError, KeyError, ValueError, TypeError, struct.error, OverflowError) as error:
            raise DamagedError(
                f"pickle is broken at byte {self.position}: {type(error).__name__}: {error}", where=self.where
            ) from error


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.stack.append(make(machine))

    return step


def _tuple(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        if len(machine.stack) < count or any(item is _MARK for item in machine.stack[-count:]):
            raise IndexError("tuple reaches below the mark")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return step


def _sized(layout: str, decode: Callable[[bytes], Any]) -> Callable[[_Machine], None]:
    return _push(lambda machine: decode(machine.take(machine.number(layout))))


def _latin(raw: bytes) -> str:
    return raw.decode("latin1")


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _int(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _int_line(machine: _Machine) -> Any:
    text = machine.line()
    return {"00": False, "01": True}.get(text) if text in ("00", "01") else int(text)


def _quoted(machine: _Machine) -> str:
    text = machine.line()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        raise ValueError("string without quotes")
    return text[1:-1].encode("latin1").decode("unicode_escape")


def _stack_global(machine: _Machine) -> Global:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise TypeError("STACK_GLOBAL needs two strings")
    return Global(module, name)


def _reduce(machine: _Machine) -> Any:
    args = machine.stack.pop()
    return machine.call(machine.stack.pop(), args)


def _newobj_ex(machine: _Machine) -> Any:
    kwargs, args = machine.stack.pop(), machine.stack.pop()
    return machine.call(machine.stack.pop(), (*args, kwargs) if kwargs else args)


def _inst(machine: _Machine) -> Any:
    cls = Global(machine.line(), machine.line())
    return machine.call(cls, tuple(machine.pop_to_mark()))


def _obj(machine: _Machine) -> Any:
    cls, *args = machine.pop_to_mark()
    return machine.call(cls, tuple(args))


def _persistent(machine: _Machine, identifier: Any) -> Any:
    if machine.persistent is None:
        raise UnsafeError("pickle refers to data outside itself", where=machine.where)
    return machine.persistent(identifier)


def _setitem(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _setitems(machine: _Machine) -> None:
    pairs = machine.pop_to_mark()
    machine.set_items(machine.stack[-1], pairs)


def _append(machine: _Machine) -> None:
    value = machine.stack.pop()
    machine.append(machine.stack[-1], [value])


def _appends(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.append(machine.stack[-1], values)


def _marked_dict(machine: _Machine) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    machine.set_items(result, machine.pop_to_mark())
    return result


def _set(machine: _Machine, values: list[Any]) -> Record:
    return Record(Global("builtins", "set"), (), None, values)


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.stack.append(_MARK),
    b"0": lambda m: m.stack.pop(),  # POP
    b"1": lambda m: m.pop_to_mark(),  # POP_MARK
    b"2": lambda m: m.stack.append(m.stack[-1]),  # DUP
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"I": _push(_int_line),
    b"L": _push(lambda m: int(m.line().rstrip("L"))),
    b"F": _push(lambda m: float(m.line())),
    b"J": _push(lambda m: m.number("<i")),
    b"K": _push(lambda m: m.number("<B")),
    b"M": _push(lambda m: m.number("<H")),
    b"G": _push(lambda m: m.number(">d")),
    b"\x8a": _sized("<B", _int),  # LONG1
    b"\x8b": _sized("<i", _int),  # LONG4
    b"S": _push(_quoted),
    b"V": _push(lambda m: m.line().encode("raw_unicode_escape").decode("raw_unicode_escape")),
    b"T": _sized("<i", _latin),  # BINSTRING
    b"U": _sized("<B", _latin),  # SHORT_BINSTRING
    b"X": _sized("<I", _utf8),  # BINUNICODE
    b"\x8c": _sized("<B", _utf8),  # SHORT_BINUNICODE
    b"\x8d": _sized("<Q", _utf8),  # BINUNICODE8
    b"B": _sized("<I", bytes),  # BINBYTES
    b"C": _sized("<B", bytes),  # SHORT_BINBYTES
    b"\x8e": _sized("<Q", bytes),  # BINBYTES8
    b"\x96": _sized("<Q", bytearray),  # BYTEARRAY8
    b")": _push(lambda m: ()),
    b"t": _push(lambda m: tuple(m.pop_to_mark())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"]": _push(lambda m: []),
    b"l": _push(lambda m: m.pop_to_mark()),
    b"a": _append,
    b"e": _appends,
    b"}": _push(lambda m: {}),
    b"d": _push(_marked_dict),
    b"s": _setitem,
    b"u": _setitems,
    b"\x8f": _push(lambda m: _set(m, [])),  # EMPTY_SET
    b"\x90": _appends,  # ADDITEMS
    b"\x91": _push(lambda m: _set(m, m.pop_to_mark())),  # FROZENSET
    b"p": lambda m: m.memoize(int(m.line())),
    b"q": lambda m: m.memoize(m.number("<B")),
    b"r": lambda m: m.memoize(m.number("<I")),
    b"\x94": lambda m: m.memoize(len(m.memo)),
    b"g": _push(lambda m: m.memo[int(m.line())]),
    b"h": _push(lambda m: m.memo[m.number("<B")]),
    b"j": _push(lambda m: m.memo[m.number("<I")]),
    b"c": _push(lambda m: Global(m.line(), m.line())),
    b"\x93": _push(_stack_global),
    b"R": _push(_reduce),
    b"\x81": _push(_reduce),  # NEWOBJ
    b"\x92": _push(_newobj_ex),
    b"i": _push(_inst),
    b"o": _push(_obj),
    b"b": lambda m: m.build(),
    b"P": _push(lambda m: _persistent(m, m.line())),
    b"Q": _push(lambda m: _persistent(m, m.stack.pop())),
}


def loads(
    data: bytes,
    where: str,
    builders: Mapping[str, Builder] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The plain data in a pickle; whatever else it holds comes back as inert :class:`Record` and :class:`Global`.

    Args:
        data: the pickle.
        where: its name in messages.
        builders: ``"module.name"`` to a function of the caller's that stands in for it.
        persistent: what to make of a persistent id (torch's storages); without it such an id is refused.

    Raises:
        DamagedError: the pickle is cut off or inconsistent.
        UnsafeError: it is larger than :data:`MAX_PICKLE_NBYTES` or does what no checkpoint needs.
    """
    if len(data) > MAX_PICKLE_NBYTES:
        raise UnsafeError(f"pickle of {len(data)} bytes; the limit is {MAX_PICKLE_NBYTES}", where=where)
    return _Machine(data, where, builders or {}, persistent).run()


def walk(tree: Any, where: str) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(key path, leaf) for all leaves of nested dicts, lists, tuples and records, each container once.

    Raises:
        UnsafeError: containers are nested deeper than 200.
    """
    seen: set[int] = set()
    stack: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        children: list[tuple[Any, Any]]
        if isinstance(node, dict):
            children = list(node.items())
        elif isinstance(node, list | tuple):
            children = list(enumerate(node))
        elif isinstance(node, Record):
            children = [*enumerate(node.args), *node.attributes.items(), *enumerate(node.items)]
            if node.state is not None and not isinstance(node.state, dict):
                children.append(("state", node.state))
        else:
            yield path, node
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        if len(path) >= _MAX_DEPTH:
            raise UnsafeError(f"containers nested deeper than {_MAX_DEPTH}", where=where)
        stack += [((*path, key), child) for key, child in reversed(children)]
