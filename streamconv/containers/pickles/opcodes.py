"""The instructions of the pickle machine, protocols 0 to 5, by the byte that each has in a pickle.

Names and meanings are those of the standard library's ``pickletools``. An instruction that would import or call
something makes an inert :class:`Global` or :class:`Record` instead. Extension codes, which name registered classes, are
not supported.

Reading past the end of the pickle or below the last mark raises an ``IndexError`` or a ``struct.error``, which the
machine turns into a refusal. Only a slice raises nothing, so its length is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from streamconv.containers.pickles.literals import digits, latin, quoted, utf8, whole
from streamconv.containers.pickles.machine import Global, PickleMachine, Record, Step
from streamconv.core.errors import UnsafeError

__all__ = ["STEPS"]

_SET = Global("builtins", "set")
_long = Struct("<I").unpack_from


def _do(act: Callable[[PickleMachine], object]) -> Step:
    """An instruction without an operand that calls ``act``."""

    def step(machine: PickleMachine, position: int) -> int:
        act(machine)
        return position

    return step


def _push(make: Callable[[PickleMachine], Any]) -> Step:
    """An instruction without an operand that pushes the value from ``make``."""

    def step(machine: PickleMachine, position: int) -> int:
        value = make(machine)
        machine.stack.append(value)
        return position

    return step


def _make(make: Callable[[PickleMachine], Any]) -> Step:
    """As :func:`_push`, for a value that holds others: such a one takes more memory than its instruction."""

    def step(machine: PickleMachine, position: int) -> int:
        value = make(machine)
        machine.room -= 1  # as machine.spend(1) does, without the call
        if machine.room < 0:
            raise machine.effort.too_many_objects()
        machine.stack.append(value)
        return position

    return step


def _line(make: Callable[[PickleMachine, bytes], Any]) -> Step:
    """Push the value that ``make`` returns for the rest of the line."""

    def step(machine: PickleMachine, position: int) -> int:
        line, position = machine.line(position)
        machine.stack.append(make(machine, line))
        return position

    return step


def _number(layout: str) -> Step:
    """Push a number in a layout of ``struct``."""
    unpack, width = Struct(layout).unpack_from, Struct(layout).size

    def step(machine: PickleMachine, position: int) -> int:
        machine.stack.append(unpack(machine.data, position)[0])
        return position + width

    return step


def _sized(layout: str, decode: Callable[[bytes], Any]) -> Step:
    """Push the value that ``decode`` returns for some bytes; their count comes before them."""
    unpack, width = Struct(layout).unpack_from, Struct(layout).size

    def step(machine: PickleMachine, position: int) -> int:
        data, start = machine.data, position + width
        count: int = unpack(data, position)[0]
        raw = data[start : start + count]
        if len(raw) != count:
            raise machine.ended(f"{count} bytes from byte {start} were due")
        machine.stack.append(decode(raw))
        return start + count

    return step


def _tuple(count: int) -> Step:
    def step(machine: PickleMachine, position: int) -> int:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError("tuple reaches below the mark")
        machine.room -= 1
        if machine.room < 0:
            raise machine.effort.too_many_objects()
        stack[-count:] = [tuple(stack[-count:])]
        return position

    return step


def _pop(machine: PickleMachine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_to_mark()


def _put_line(machine: PickleMachine, position: int) -> int:
    line, position = machine.line(position)
    machine.remember(int(line))
    return position


def _put_byte(machine: PickleMachine, position: int) -> int:
    machine.memo[machine.data[position]] = machine.stack[-1]
    return position + 1


def _put_long(machine: PickleMachine, position: int) -> int:
    machine.remember(_long(machine.data, position)[0])
    return position + 4


def _memoize(machine: PickleMachine) -> None:
    machine.remember(len(machine.memo))


def _get_byte(machine: PickleMachine, position: int) -> int:
    machine.stack.append(machine.memo[machine.data[position]])
    return position + 1


def _get_long(machine: PickleMachine, position: int) -> int:
    machine.stack.append(machine.memo[_long(machine.data, position)[0]])
    return position + 4


def _global(machine: PickleMachine, position: int) -> int:
    module, position = machine.line(position)
    name, position = machine.line(position)
    machine.stack.append(machine.name(utf8(module), utf8(name)))
    return position


def _stack_global(machine: PickleMachine) -> Global:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise TypeError("STACK_GLOBAL needs two strings")
    return machine.name(module, name)


def _reduce(machine: PickleMachine, position: int) -> int:
    stack = machine.stack
    args = stack.pop()
    stack[-1] = machine.call(stack[-1], args)
    return position


def _newobj_ex(machine: PickleMachine) -> Any:
    kwargs, args = machine.stack.pop(), machine.stack.pop()
    machine.spend(len(args))
    return machine.call(machine.stack.pop(), (*args, kwargs) if kwargs else args)


def _inst(machine: PickleMachine, position: int) -> int:
    position = _global(machine, position)
    cls, args = machine.stack.pop(), machine.pop_to_mark()
    machine.stack.append(machine.call(cls, tuple(args)))
    return position


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


def _set(values: list[Any]) -> Record:
    return Record(_SET, (), None, values)


_BY_BYTE: dict[bytes, Step] = {
    b"\x80": lambda _, position: position + 1,  # PROTO
    b"\x95": lambda _, position: position + 8,  # FRAME
    b"(": _do(PickleMachine.mark),
    b"0": _do(_pop),
    b"1": _do(PickleMachine.pop_to_mark),
    b"2": _push(lambda m: m.stack[-1]),  # DUP
    b"N": _push(lambda _: None),
    b"\x88": _push(lambda _: True),
    b"\x89": _push(lambda _: False),
    b"I": _line(lambda _, line: line == b"01" if line in (b"00", b"01") else digits(line)),
    b"L": _line(lambda _, line: digits(line.rstrip(b"L"))),
    b"F": _line(lambda _, line: float(line)),
    b"J": _number("<i"),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"G": _number(">d"),
    b"\x8a": _sized("<B", whole),  # LONG1
    b"\x8b": _sized("<i", whole),  # LONG4
    b"S": _line(lambda _, line: quoted(line)),
    b"V": _line(lambda _, line: line.decode("raw_unicode_escape")),
    b"T": _sized("<i", latin),  # BINSTRING
    b"U": _sized("<B", latin),  # SHORT_BINSTRING
    b"X": _sized("<I", utf8),  # BINUNICODE
    b"\x8c": _sized("<B", utf8),  # SHORT_BINUNICODE
    b"\x8d": _sized("<Q", utf8),  # BINUNICODE8
    b"B": _sized("<I", bytes),  # BINBYTES
    b"C": _sized("<B", bytes),  # SHORT_BINBYTES
    b"\x8e": _sized("<Q", bytes),  # BINBYTES8
    b"\x96": _sized("<Q", bytearray),  # BYTEARRAY8
    b")": _push(lambda _: ()),
    b"t": _make(lambda m: tuple(m.pop_to_mark())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"]": _make(lambda m: []),
    b"l": _make(PickleMachine.pop_to_mark),
    b"a": _do(_append),
    b"e": _do(_appends),
    b"}": _make(lambda m: {}),
    b"d": _make(_marked_dict),
    b"s": _do(_setitem),
    b"u": _do(_setitems),
    b"\x8f": _make(lambda m: _set([])),  # EMPTY_SET
    b"\x90": _do(_appends),  # ADDITEMS
    b"\x91": _make(lambda m: _set(m.pop_to_mark())),  # FROZENSET
    b"p": _put_line,
    b"q": _put_byte,
    b"r": _put_long,
    b"\x94": _do(_memoize),
    b"g": _line(lambda m, line: m.memo[int(line)]),
    b"h": _get_byte,
    b"j": _get_long,
    b"c": _global,
    b"\x93": _push(_stack_global),
    b"R": _reduce,
    b"\x81": _reduce,  # NEWOBJ
    b"\x92": _push(_newobj_ex),
    b"i": _inst,
    b"o": _push(_obj),
    b"b": _do(PickleMachine.build),
    b"P": _line(lambda m, line: _persistent(m, utf8(line))),
    b"Q": _push(lambda m: _persistent(m, m.stack.pop())),
}
STEPS: tuple[Step | None, ...] = tuple(_BY_BYTE.get(bytes((code,))) for code in range(256))
