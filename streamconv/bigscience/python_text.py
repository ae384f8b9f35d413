"""Values of a checkpoint as Python would print them, although no class that the pickle names is imported.

Plain values, ``argparse.Namespace``, sets, ``torch.Size``, devices and numpy scalars come out as ``print`` shows them;
any other object as ``module.Class(args, attribute=value)``. For a tensor its shape is printed, for an array or a long
byte string its size. The loader turns an ``OrderedDict`` into a dictionary, and it prints as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from streamconv.containers.pickles.reader import Global, Record
from streamconv.core.effort import DEEPEST
from streamconv.core.errors import UnsafeError
from streamconv.core.lazy import LazyTensor

__all__ = ["one_line", "size_text", "text_of"]

_LONGEST_TEXT = 1 << 20
_LONGEST_BYTES = 64
_NAMESPACES = {"argparse.Namespace": "Namespace", "types.SimpleNamespace": "namespace"}
_NUMPY = ("numpy.core.multiarray.", "numpy._core.multiarray.")
_CUT = f".. (cut after {_LONGEST_TEXT} characters)"
_NUMBER = re.compile(r"b1|[iu][1248]|f[248]")


def size_text(shape: Iterable[int]) -> str:
    """A shape as torch prints it."""
    return f"torch.Size([{', '.join(map(str, shape))}])"


def text_of(value: Any, where: str) -> str:
    """The text of a value in an f-string, cut after 2^20 characters; control characters are escaped, except line
    ends and tabs.

    Raises:
        UnsafeError: it is nested too deep.
    """
    if isinstance(value, str):
        text = value if value.isprintable() else "".join(map(_visible, value))
        return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + _CUT
    device, number = _device(value), _number(value)
    if device is not None:
        return one_line(":".join(map(str, device)))
    if number is not None:
        return format(number, "")  # of a float32, all digits of a Python float
    writer = _Writer(where)
    try:
        writer.value(value)
    except _FullError:
        return "".join(writer.words)[:_LONGEST_TEXT] + _CUT
    return "".join(writer.words)


def one_line(text: str) -> str:
    """A name, all control characters escaped, line ends too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _visible(letter: str) -> str:
    return letter if letter.isprintable() or letter in "\n\t" else _escaped(letter)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


class _FullError(Exception):
    """The text has reached its limit."""


class _Writer:
    """Collects the ``repr`` of a value in ``words``."""

    def __init__(self, where: str) -> None:
        self.where, self.words, self.room, self.depth = where, [""], _LONGEST_TEXT, 0

    def add(self, word: str) -> None:
        word = one_line(word)
        self.words.append(word)
        self.room -= len(word)
        if self.room < 0:
            raise _FullError

    def value(self, value: Any) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnsafeError(f"values nested deeper than {DEEPEST}", where=self.where)
        if isinstance(value, Record):
            self.record(value)
        elif isinstance(value, dict):
            self.mapping(value)
        elif isinstance(value, list):
            self.sequence("[", value, "]")
        elif type(value) is tuple:
            self.sequence("(", value, ",)" if len(value) == 1 else ")")
        else:
            self.add(_atom(value))
        self.depth -= 1

    def sequence(self, before: str, values: Iterable[Any], after: str) -> None:
        self.add(before)
        for number, value in enumerate(values):
            self.add(", " if number else "")
            self.value(value)
        self.add(after)

    def mapping(self, values: dict[Any, Any]) -> None:
        self.add("{")
        for number, (key, value) in enumerate(values.items()):
            self.add(", " if number else "")
            self.value(key)
            self.add(": ")
            self.value(value)
        self.add("}")

    def call(self, name: str, positional: Iterable[Any], named: Iterable[tuple[str, Any]]) -> None:
        self.add(f"{name}(")
        arguments = [("", value) for value in positional] + [(f"{key}=", value) for key, value in named]
        for number, (key, value) in enumerate(arguments):
            self.add(f", {key}" if number else key)
            self.value(value)
        self.add(")")

    def record(self, record: Record) -> None:
        name = _name(record.cls)
        if name in _NAMESPACES:
            self.namespace(record, _NAMESPACES[name])
        elif name in ("set", "frozenset"):
            self.set(record, name)
        elif (plain := _plain(record, name)) is not None:
            self.add(plain)
        else:
            named = list(record.attributes.items())
            if record.state is not None and not isinstance(record.state, dict):
                named.append(("state", record.state))
            if record.items:
                named.append(("items", record.items))
            self.call(name, record.args, named)

    def namespace(self, record: Record, name: str) -> None:
        """``Namespace(a=1, **{'b-c': 2})``, as ``argparse._AttributeHolder.__repr__`` writes it."""
        attributes = record.attributes
        odd = {key: value for key, value in attributes.items() if not key.isidentifier()}
        self.call(name, (), [(key, value) for key, value in attributes.items() if key not in odd])
        if odd:
            self.words[-1] = ", **" if len(odd) < len(attributes) else "**"
            self.mapping(odd)
            self.add(")")

    def set(self, record: Record, name: str) -> None:
        first = record.args[0] if record.args else ()
        values = [*(first if isinstance(first, list | tuple) else ()), *record.items]
        if values:
            self.sequence(*(("{", values, "}") if name == "set" else (f"{name}({{", values, "})")))
        else:
            self.add(f"{name}()")


# -- values that are not containers ------------------------------------------------------------------------------------


def _atom(value: Any) -> str:
    if isinstance(value, tuple):
        return size_text(value)
    if isinstance(value, bytes | bytearray):
        return _bytes(value)
    if isinstance(value, LazyTensor):
        return f"tensor({size_text(value.shape)}, dtype=torch.{value.dtype})"
    if isinstance(value, Global):
        return _name(value)
    return repr(value) if value is None or isinstance(value, str | int | float) else f"<{type(value).__name__}>"


def _bytes(value: bytes | bytearray) -> str:
    if len(value) <= _LONGEST_BYTES:
        return repr(value)
    return f"{bytes(value[:_LONGEST_BYTES])!r}.. ({len(value)} bytes)"


def _name(value: Global) -> str:
    """The name of a class; in protocol 2, which torch.save writes, builtins have their names of Python 2."""
    if value.module not in ("builtins", "__builtin__"):
        return str(value)
    return "range" if value.name == "xrange" else value.name


def _plain(record: Record, name: str) -> str | None:
    """The text of a device, an enum's member by name, bytes, a numpy scalar or array; None for any other object."""
    args = record.args
    device = _device(record)
    if device is not None:
        index = f", index={device[1]}" if len(device) > 1 else ""
        return f"device(type={device[0]!r}{index})"
    if name == "getattr" and len(args) == 2 and isinstance(args[0], Global):
        return f"{_name(args[0])}.{args[1]}"  # an enum's member, as Python 3.11.0 to 3.11.3 pickle it
    data = _data(record)
    if data is not None:
        return _bytes(data)
    number = _number(record)
    if number is not None:
        return repr(number)
    return _array(record)


def _device(value: Any) -> tuple[Any, ...] | None:
    """``torch.device("cuda", 0)`` as (type, index)."""
    if not isinstance(value, Record) or str(value.cls) != "torch.device":
        return None
    known = 1 <= len(value.args) <= 2 and isinstance(value.args[0], str)
    return value.args if known and all(isinstance(index, int) for index in value.args[1:]) else None


def _data(value: Any) -> bytes | bytearray | None:
    """Bytes, which protocol 2 writes as a call of ``_codecs.encode(text, "latin1")`` or of ``bytes()``."""
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, Record):
        text = value.args[0] if value.args else ""
        known = ("_codecs.encode", 2) if value.args else ("bytes", 0)
        if (_name(value.cls), len(value.args)) == known and isinstance(text, str):
            return text.encode("latin1", errors="replace")
    return None


def _dtype(value: Any) -> str | None:
    """The code of a plain little-endian numpy type, such as ``f8``; None for any other value."""
    if not isinstance(value, Record) or str(value.cls) != "numpy.dtype" or not value.args:
        return None
    little = not isinstance(value.state, tuple) or value.state[1:2] in (("<",), ("|",))
    code = value.args[0]
    return code if little and isinstance(code, str) and _NUMBER.fullmatch(code) else None


def _is_numpy(value: Any, function: str) -> bool:
    return isinstance(value, Record) and str(value.cls) in [module + function for module in _NUMPY]


def _number(value: Any) -> Any:
    """The value of a numpy scalar; None for any other object."""
    if not _is_numpy(value, "scalar") or len(value.args) != 2:
        return None
    code, data = _dtype(value.args[0]), _data(value.args[1])
    if code is None or data is None or len(data) != int(code[1:]):
        return None
    import numpy as np

    return np.frombuffer(bytes(data), f"<{code}")[0]


def _array(value: Record) -> str | None:
    """A numpy array's shape, type and size, from the state that ``ndarray.__reduce__`` returns."""
    if not _is_numpy(value, "_reconstruct") or not isinstance(value.state, tuple) or len(value.state) != 5:
        return None
    _, shape, dtype, _, content = value.state
    code, data = _dtype(dtype), _data(content)
    if code is None or data is None or not isinstance(shape, tuple) or set(map(type, shape)) - {int}:
        return None
    return f"numpy.ndarray(shape={shape}, dtype={code}, {len(data)} bytes)"
