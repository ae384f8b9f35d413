"""What the value of a pickle comes to if it is written out as a tree, though it holds some of its parts many times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

from streamconv.containers.pickles.machine import Global, Record
from streamconv.core.effort import Effort
from streamconv.core.errors import UnsafeError
from streamconv.core.lazy import LazyTensor

__all__ = ["CONTAINERS", "check_effort"]

CONTAINERS = (dict, list, tuple, Record)
"""The values of a pickle that hold others."""
_PLAIN = frozenset((bool, float, type(None)))
# Characters of an item's number in a dotted name, and of a key that is a tuple or an object, with the dot.
_NUMBER, _OTHER = 4, 256
_SMALL = 1 << 64


class _Cost(NamedTuple):
    """What a value comes to, each part counted as often as it is held: values, lines that show it by a dotted name,
    characters, tensors, their bytes, and containers inside one another.
    """

    values: int
    lines: int
    text: int
    tensors: int
    nbytes: int
    depth: int


def check_effort(tree: Any, effort: Effort) -> None:
    """Check that looking at all of a value, or writing it out, takes no more than its file's size allows.

    A value that holds itself gets an ellipsis in that place, as ``repr`` has it.

    Raises:
        UnsafeError: it takes more, is nested too deep, or is a tuple or a key that holds itself.
    """
    costs: dict[int, _Cost] = {}
    for node in _bottom_up(tree, effort):
        costs[id(node)] = _cost(node, costs)
    whole = costs[id(tree)] if isinstance(tree, CONTAINERS) else _leaf(tree)
    effort.check_depth(whole.depth)
    effort.check(whole.values, whole.text, whole.tensors, whole.nbytes)


def _bottom_up(tree: Any, effort: Effort) -> Iterator[Any]:
    """Each container of a tree once, after those that it holds."""
    if not isinstance(tree, CONTAINERS):
        return
    seen, around = {id(tree)}, {id(tree)}
    stack = [(tree, iter(_held(tree)))]
    while stack:
        node, held = stack[-1]
        for child in held:
            if id(child) in around:
                _cut(node, child, effort)
            elif id(child) not in seen:
                seen.add(id(child))
                around.add(id(child))
                stack.append((child, iter(_held(child))))
                effort.check_depth(len(stack))
                break
        else:
            stack.pop()
            around.remove(id(node))
            yield node


def _held(node: Any) -> list[Any]:
    """The containers that a container holds itself."""
    if isinstance(node, dict):
        return [*_keys(node), *(value for value in node.values() if isinstance(value, CONTAINERS))]
    if isinstance(node, Record):
        return [value for value in (*node.args, *node.items, node.state) if isinstance(value, CONTAINERS)]
    return [value for value in node if isinstance(value, CONTAINERS)]


def _keys(node: Any) -> list[Any]:
    """The keys of a dictionary that are containers; none of any other value."""
    return [key for key in node if isinstance(key, tuple | Record)] if isinstance(node, dict) else []


def _cut(node: Any, child: Any, effort: Effort) -> None:
    """Put an ellipsis in the place of a value that ``node`` holds and that holds ``node``."""
    if isinstance(node, list):
        node[:] = _without(node, child)
    elif isinstance(node, dict) and all(key is not child for key in node):
        node.update(zip(node, _without(node.values(), child), strict=True))
    elif isinstance(node, Record):
        node.args, node.items = tuple(_without(node.args, child)), _without(node.items, child)
        node.state = ... if node.state is child else node.state
    else:
        raise UnsafeError(f"a {type(node).__name__} that holds itself", where=effort.where)


def _without(values: Iterable[Any], child: Any) -> list[Any]:
    return [... if value is child else value for value in values]


def _cost(node: Any, costs: dict[int, _Cost]) -> _Cost:
    pairs, is_named = _pairs(node)
    values, lines, text, tensors, nbytes, depth = 1, 0, 0, 0, 0, 0
    for key, child in pairs:
        kind = type(child)
        name = _name(key) if is_named else _NUMBER
        if kind in _PLAIN or (kind is int and -_SMALL < child < _SMALL):
            values += 1
            # The plain items of a list are shown together.
            lines, text = (lines + 1, text + name) if is_named else (lines, text)
            continue
        cost = costs[id(child)] if isinstance(child, CONTAINERS) else _leaf(child)
        values, lines, nbytes = values + cost.values, lines + cost.lines, nbytes + cost.nbytes
        text, tensors = text + cost.text + name * cost.lines, tensors + cost.tensors
        depth = max(depth, cost.depth)
    for key in _keys(node):
        cost = costs[id(key)]
        values, text, depth = values + cost.values, text + cost.text, max(depth, cost.depth)
    return _Cost(values, lines or 1, text, tensors, nbytes, depth + 1)


def _pairs(node: Any) -> tuple[Iterable[tuple[Any, Any]], bool]:
    """(key, value) of all that a container holds, and whether the keys are names."""
    if isinstance(node, dict):
        return node.items(), True
    values = (*node.args, *node.items, node.state) if isinstance(node, Record) else node
    return zip(repeat(0), values), False


def _name(key: Any) -> int:
    """The characters of a key in a dotted name, with the dot."""
    if type(key) is str:
        return len(key) + 1
    return (_OTHER if isinstance(key, tuple | Record) else _NUMBER) + _leaf(key).text


def _leaf(value: Any) -> _Cost:
    """The cost of a value that holds no others."""
    text, tensors, nbytes = 0, 0, 0
    if isinstance(value, str | bytes | bytearray):
        text = len(value) if isinstance(value, str) else 4 * len(value)
    elif isinstance(value, int):
        text = value.bit_length() // 3
    elif isinstance(value, Global):
        text = len(value.module) + len(value.name)
    elif isinstance(value, LazyTensor):
        text, tensors, nbytes = 20 * len(value.shape), 1, value.nbytes
    return _Cost(1, 1, text, tensors, nbytes, 0)
