"""Read a pickle without importing or calling anything that it names, and walk through the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

from streamconv.containers.pickles.machine import Builder, Global, PickleMachine, Record
from streamconv.containers.pickles.measure import CONTAINERS, check_effort
from streamconv.containers.pickles.opcodes import STEPS
from streamconv.core.effort import DEEPEST, Effort
from streamconv.core.errors import UnsafeError

__all__ = ["MAX_PICKLE_NBYTES", "Global", "Record", "behind", "leaves_of", "load_from", "loads", "walk"]

MAX_PICKLE_NBYTES = 64 << 20
Leaf = TypeVar("Leaf")


def loads(
    data: bytes,
    where: str,
    builders: Mapping[str, Builder] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    named: dict[Global, int] | None = None,
    stored: int = 0,
    *,
    measured: bool = True,
) -> Any:
    """The plain data in a pickle; whatever else it holds comes back as inert :class:`Record` and :class:`Global`.

    Args:
        data: the pickle.
        where: its name in messages.
        builders: the caller's replacements for some functions, by ``"module.name"``.
        persistent: returns the value for a persistent id (torch's storages); without it such an id is refused.
        named: each global that the pickle names is added here, with the number of calls of it.
        stored: the bytes of the file that its tensors are in.
        measured: whether walking through the value is bounded here; otherwise by the caller, with
            :func:`check_effort`.

    Raises:
        DamagedError: the pickle is cut off or inconsistent.
        UnsafeError: it is larger than :data:`MAX_PICKLE_NBYTES`, takes more than its size allows (see
            :class:`Effort`), or does what no checkpoint needs.
    """
    return load_from(data, 0, where, builders, persistent, named, stored, measured=measured)[0]


def load_from(
    data: bytes,
    start: int,
    where: str,
    builders: Mapping[str, Builder] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    named: dict[Global, int] | None = None,
    stored: int = 0,
    *,
    measured: bool = True,
) -> tuple[Any, int]:
    """(the value of the pickle that begins at ``start``, where it ends); see :func:`loads`. Other bytes may follow.

    Raises:
        DamagedError: the pickle is cut off or inconsistent.
        UnsafeError: ``data`` is larger than :data:`MAX_PICKLE_NBYTES`, or the pickle takes more than its size allows
            or does what no checkpoint needs.
    """
    if len(data) > MAX_PICKLE_NBYTES:
        raise UnsafeError(f"pickle of {len(data)} bytes; the limit is {MAX_PICKLE_NBYTES}", where=where)
    machine = PickleMachine(data, Effort(where, len(data) - start), builders or {}, persistent)
    value = machine.run(STEPS, start)
    if measured:
        check_effort(value, Effort(where, machine.end - start, stored))
    if named is not None:
        machine.count_into(named)
    return value, machine.end


def behind(nbytes: int) -> tuple[str, ...]:
    """The note on bytes behind the end of a pickle, none if there are none: ``pickle`` does not read them either."""
    return (f"{nbytes} bytes behind the end of its pickle are not read",) if nbytes else ()


def walk(tree: Any, where: str) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(key path, leaf) for all leaves of nested dicts, lists, tuples and records, each container once.

    Raises:
        UnsafeError: containers are nested deeper than 200.
    """
    return leaves_of(object, tree, where)


def leaves_of(kind: type[Leaf], tree: Any, where: str) -> Iterator[tuple[tuple[Any, ...], Leaf]]:
    """The items of :func:`walk` whose leaf is of one type."""
    if not isinstance(tree, CONTAINERS):
        if isinstance(tree, kind):
            yield (), tree
        return
    seen = {id(tree)}
    stack: list[tuple[tuple[Any, ...], Iterator[tuple[Any, Any]]]] = [((), _children(tree))]
    while stack:
        path, children = stack[-1]
        for key, child in children:
            if not isinstance(child, CONTAINERS):
                if isinstance(child, kind):
                    yield (*path, key), child
            elif id(child) not in seen:
                seen.add(id(child))
                if len(path) + 1 >= DEEPEST:
                    raise UnsafeError(f"containers nested deeper than {DEEPEST}", where=where)
                stack.append(((*path, key), _children(child)))
                break
        else:
            stack.pop()


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        return iter(node.items())
    if not isinstance(node, Record):
        return enumerate(node)
    state = () if node.state is None or isinstance(node.state, dict) else (("state", node.state),)
    return chain(enumerate(node.args), node.attributes.items(), enumerate(node.items), state)
