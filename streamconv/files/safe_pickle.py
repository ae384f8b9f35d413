"""Read a pickle without importing or calling anything that it names, and walk what came out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from streamconv.errors import UnsafeError
from streamconv.files.pickle_machine import Builder, Global, PickleMachine, Record
from streamconv.files.pickle_steps import STEPS

__all__ = ["MAX_PICKLE_NBYTES", "Global", "Record", "loads", "walk"]

MAX_PICKLE_NBYTES = 64 << 20
_MAX_DEPTH = 200


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
    return PickleMachine(data, where, builders or {}, persistent).run(STEPS)


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
