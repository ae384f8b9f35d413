"""A checkpoint's values other than tensors, readable: plain data as it is, everything else in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from streamconv.containers.pickles.reader import Global, Record
from streamconv.core.lazy import LazyTensor, Storage

__all__ = ["args_table", "readable", "readable_values"]

_LONGEST_TEXT = 400
_MOST_ITEMS = 16
_DEEPEST = 8
_NAMESPACE = ("argparse.Namespace", "types.SimpleNamespace")


def readable(value: Any, depth: int = 0) -> Any:
    """A value that JSON can express: short lists and dictionaries whole, long ones and foreign objects in words."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else f"{value[:_LONGEST_TEXT]}.. ({len(value)} characters)"
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, LazyTensor):
        return f"tensor {list(value.shape)} {value.dtype}"
    if isinstance(value, Storage):
        return f"object of {value.nbytes} bytes"
    if isinstance(value, Global):
        return str(value)
    if depth >= _DEEPEST:
        return f"{type(value).__name__} (nested deeper than {_DEEPEST})"
    if isinstance(value, Record):
        return _record(value, depth)
    if isinstance(value, Mapping):
        shown = {str(key): readable(item, depth + 1) for key, item in islice(value.items(), _MOST_ITEMS)}
        return shown | {"..": f"{len(value) - _MOST_ITEMS} more"} if len(value) > _MOST_ITEMS else shown
    if isinstance(value, list | tuple | set | frozenset):
        items = [readable(item, depth + 1) for item in islice(value, _MOST_ITEMS)]
        return [*items, f".. {len(value) - _MOST_ITEMS} more"] if len(value) > _MOST_ITEMS else items
    return str(value)[:_LONGEST_TEXT]


def _record(value: Record, depth: int) -> Any:
    if str(value.cls) in _NAMESPACE:
        return {name: readable(item, depth + 1) for name, item in value.attributes.items()}
    words = [str(readable(item, depth + 1)) for item in value.args[:4]]
    words += [f"{name}={readable(item, depth + 1)}" for name, item in islice(value.attributes.items(), 4)]
    text = f"{value.cls}({', '.join(words)})"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}.."


def readable_values(state: Any) -> dict[str, Any]:
    """A file's values other than tensors, by dotted path. Dictionaries are walked into, and lists that hold one or a
    tensor. ``args`` are left out: see :func:`args_table`.
    """
    return dict(_walk(state, (), set()))


def _walk(node: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(node, LazyTensor) or (path == ("args",) and isinstance(node, Record)):
        return
    if isinstance(node, dict | list | tuple) and id(node) not in seen and len(path) < _DEEPEST:
        seen.add(id(node))
        items = list(node.items() if isinstance(node, dict) else enumerate(node))
        if isinstance(node, dict) or any(isinstance(item, LazyTensor | dict) for _, item in items):
            for key, item in items:
                yield from _walk(item, (*path, str(key)), seen)
            if items or not path:
                return
    yield ".".join(path), readable(node)


def args_table(state: Any) -> dict[str, Any] | None:
    """The training arguments of a rank's file, readable and sorted; None if it has none."""
    args = state.get("args") if isinstance(state, dict) else None
    if not isinstance(args, Record):
        return None
    return {name: readable(value) for name, value in sorted(args.attributes.items())}
