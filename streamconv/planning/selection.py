"""Which tensors of a model are taken, and how they are called: ``--tensors``, ``--skip``, ``--rename``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from streamconv.core.errors import UsageError
from streamconv.core.kinds import nearest

__all__ = ["Selection", "select"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The new names of the tensors that are taken, by their names, and the names that are left out, with the flag."""

    taken: Mapping[str, str]
    left: Mapping[str, str]


def select(
    names: Iterable[str], tensors: Sequence[str], skip: Sequence[str], rename: Sequence[tuple[str, str]]
) -> Selection:
    """Apply the user's patterns.

    Args:
        names: the names of all tensors.
        tensors: patterns (:mod:`fnmatch`) of those to take; none takes all.
        skip: patterns of those to leave out.
        rename: (pattern, new name), in which each ``*`` is what the pattern's stands for.

    Raises:
        UsageError: a pattern matches nothing, nothing is left, or two tensors get one name.
    """
    every = list(names)
    asked = (("--tensors", tensors, fnmatchcase), ("--skip", skip, fnmatchcase))
    for flag, patterns, matches in (*asked, ("--rename", [pattern for pattern, _ in rename], _matches)):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in every):
                meant = nearest(pattern, every)
                raise UsageError(
                    f"{flag} {pattern}: none of {len(every)} tensors has such a name",
                    remedy=f"did you mean {meant}?" if meant else "streamconv inspect lists them",
                )
    left: dict[str, str] = {}
    for name in every:
        if tensors and not any(fnmatchcase(name, pattern) for pattern in tensors):
            left[name] = "--tensors"
        elif any(fnmatchcase(name, pattern) for pattern in skip):
            left[name] = "--skip"
    taken: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in every:
        if name in left:
            continue
        new = _renamed(name, rename)
        if (other := owners.setdefault(new, name)) != name:
            raise UsageError(f"--rename calls both {other} and {name} {new}", remedy="choose other names")
        taken[name] = new
    if not taken:
        raise UsageError("no tensor is left by --tensors and --skip", remedy="widen the patterns")
    return Selection(taken, left)


def _match(name: str, pattern: str) -> re.Match[str] | None:
    """What each ``*`` of a pattern stands for in a name; no other sign stands for others."""
    parts = [re.escape(part) for part in pattern.split("*")]
    return re.fullmatch("(.*)".join(parts), name, re.DOTALL)


def _matches(name: str, pattern: str) -> bool:
    return _match(name, pattern) is not None


def _renamed(name: str, rename: Sequence[tuple[str, str]]) -> str:
    for pattern, new in rename:
        match = _match(name, pattern)
        if match:
            found = iter(match.groups())
            return "".join(next(found) if sign == "*" else sign for sign in new)
    return name
