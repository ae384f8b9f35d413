"""The instructions of the pickle machine, protocols 0 to 5, under the byte that each has in a pickle.

Names and meanings are those of the standard library's ``pickletools``. What would import or call something makes an
inert :class:`Global` or :class:`Record` instead; extension codes, which name registered classes, are not there.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

from streamconv.errors import UnsafeError
from streamconv.files.pickle_machine import MARK, Global, PickleMachine, Record

__all__ = ["STEPS"]

_LARGEST_INT = 1024


def _push(make: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    def step(machine: PickleMachine) -> None:
        machine.stack.append(make(machine))

    return step


def _tuple(count: int) -> Callable[[PickleMachine], None]:
    def step(machine: PickleMachine) -> None:
        if len(machine.stack) < count or any(item is MARK for item in machine.stack[-count:]):
            raise IndexError("tuple reaches below the mark")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return step


def _sized(layout: str, decode: Callable[[bytes], Any]) -> Callable[[PickleMachine], None]:
    return _push(lambda machine: decode(machine.take(machine.number(layout))))


def _latin(raw: bytes) -> str:
    return raw.decode("latin1")


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _int(raw: bytes) -> int:
    if len(raw) > _LARGEST_INT:
        raise ValueError(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _int_line(machine: PickleMachine) -> Any:
    line = machine.line()
    return line == b"01" if line in (b"00", b"01") else int(line)


def _quoted(machine: PickleMachine) -> str:
    line = machine.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b'"', b"'"):
        raise ValueError("string without quotes")
    # Bytes of Python 2, escaped: codecs.escape_decode is what the standard library's own unpickler uses.
    raw, _ = codecs.escape_decode(line[1:-1])
    return raw.decode("latin1")


def _named(machine: PickleMachine) -> Global:
    module, name = machine.line(), machine.line()
    return Global(_utf8(module), _utf8(name))


def _stack_global(machine: PickleMachine) -> Global:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise TypeError("STACK_GLOBAL needs two strings")
    return Global(module, name)


def _reduce(machine: PickleMachine) -> Any:
    args = machine.stack.pop()
    return machine.call(machine.stack.pop(), args)


def _newobj_ex(machine: PickleMachine) -> Any:
    kwargs, args = machine.stack.pop(), machine.stack.pop()
    return machine.call(machine.stack.pop(), (*args, kwargs) if kwargs else args)


def _inst(machine: PickleMachine) -> Any:
    cls = _named(machine)
    return machine.call(cls, tuple(machine.pop_to_mark()))


def _obj(machine: PickleMachine) -> Any:
    cls, *args = machine.pop_to_mark()
    return machine.call(cls, tuple(args))


def _persistent(machine: PickleMachine, identifier: Any) -> Any:
    if machine.persistent is None:
        raise UnsafeError("pickle refers to data outside itself", where=machine.where)
    return machine.persistent(identifier)


def _setitem(machine: PickleMachine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _setitems(machine: PickleMachine) -> None:
    pairs = machine.pop_to_mark()
    machine.set_items(machine.stack[-1], pairs)


def _append(machine: PickleMachine) -> None:
    value = machine.stack.pop()
    machine.append(machine.stack[-1], [value])


def _appends(machine: PickleMachine) -> None:
    values = machine.pop_to_mark()
    machine.append(machine.stack[-1], values)


def _marked_dict(machine: PickleMachine) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    machine.set_items(result, machine.pop_to_mark())
    return result


def _set(machine: PickleMachine, values: list[Any]) -> Record:
    return Record(Global("builtins", "set"), (), None, values)


STEPS: dict[bytes, Callable[[PickleMachine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.stack.append(MARK),
    b"0": lambda m: m.stack.pop(),  # POP
    b"1": lambda m: m.pop_to_mark(),  # POPMARK
    b"2": lambda m: m.stack.append(m.stack[-1]),  # DUP
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"I": _push(_int_line),
    b"L": _push(lambda m: int(m.line().rstrip(b"L"))),
    b"F": _push(lambda m: float(m.line())),
    b"J": _push(lambda m: m.number("<i")),
    b"K": _push(lambda m: m.number("<B")),
    b"M": _push(lambda m: m.number("<H")),
    b"G": _push(lambda m: m.number(">d")),
    b"\x8a": _sized("<B", _int),  # LONG1
    b"\x8b": _sized("<i", _int),  # LONG4
    b"S": _push(_quoted),
    b"V": _push(lambda m: m.line().decode("raw_unicode_escape")),
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
    b"c": _push(_named),
    b"\x93": _push(_stack_global),
    b"R": _push(_reduce),
    b"\x81": _push(_reduce),  # NEWOBJ
    b"\x92": _push(_newobj_ex),
    b"i": _push(_inst),
    b"o": _push(_obj),
    b"b": lambda m: m.build(),
    b"P": _push(lambda m: _persistent(m, _utf8(m.line()))),
    b"Q": _push(lambda m: _persistent(m, m.stack.pop())),
}
