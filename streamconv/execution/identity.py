"""What a run is: its sources, the user's choices, and all that it writes. Two runs of the same identity write the same.

A source is known by its size, its time of change and a digest of its metadata, not by how its path was spelled: the
same files may be named by another path, or seen through another mount.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.core.errors import DestinationError
from streamconv.planning.plan import Plan

__all__ = ["digest_of", "identity_of", "refuse_another"]

_VERSION = 4
_FINISH_OTHERS = "run the command that began it, or say --restart to discard what it did"
_PATH = re.compile(r"""PosixPath\((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)""")
# A time that went through a float, as some file systems in user space have it, is off by less.
_MTIME_NS = 1000


def identity_of(plan: Plan) -> dict[str, Any]:
    """The identity of a run: its sources as they were opened, its choices in words, and a digest of all it writes."""
    names = _source_names(plan)
    sources = {names[each.path]: [each.nbytes, each.mtime_ns, each.digest.hex()] for each in plan.identities}
    told = {repr(path): name for path, name in names.items()}
    digest = hashlib.sha256()
    for file in plan.files:
        digest.update(repr((file.path, file.layout.storages)).encode())
        for entry in file.entries:
            # Where each of its elements comes from; the tensor's own repr leaves that out.
            made = [(tensor.shape, tensor.dtype, tensor.pieces) for tensor in entry.read]
            pieces = repr((*made[0],) if entry.update is None else (*made, entry.update.scale))
            digest.update(_PATH.sub(lambda match: told.get(match[0], match[0]), pieces).encode())
        for offset, data in file.layout.frame(dict.fromkeys(range(len(file.layout.storages)), 0)):
            digest.update(offset.to_bytes(8, "little") + data)
    for texts in (plan.texts, plan.small, {name: names[path] for name, path in plan.copied.items()}):
        digest.update(repr(sorted(texts.items())).encode())
    choices = {
        "target": plan.target_format,
        "layout": str(plan.target_layout),
        "dtype": str(plan.dtype or "as stored"),
        "replicated": plan.replicated_policy,
    }
    return {"journal": _VERSION, "choices": choices, "sources": sources, "digest": digest.hexdigest()}


def digest_of(identity: Mapping[str, Any]) -> str:
    """The SHA-256 of an identity: of what a run reads and writes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _source_names(plan: Plan) -> dict[Path, str]:
    """A name for each file that is read: its path below the checkpoint's folder, or else its own name."""
    names: dict[Path, str] = {}
    for path in sorted(each.path for each in plan.identities):
        below = path.is_relative_to(plan.source)
        name = str(path.relative_to(plan.source)) if below else f"../{path.name}"
        names[path] = name if name not in names.values() else str(path)
    return names


def refuse_another(noted: Any, identity: Mapping[str, Any], destination: Path) -> None:
    """Refuse to resume a run with another identity.

    Raises:
        DestinationError: the identities differ, or its journal cannot be read; the message says what differs.
    """
    known = noted if isinstance(noted, dict) else {}
    choices, sources = known.get("choices"), known.get("sources")
    if known.get("journal") != _VERSION or not isinstance(choices, dict) or not isinstance(sources, dict):
        raise DestinationError(
            "an unfinished conversion is there, of another version", where=destination, remedy=_FINISH_OTHERS
        )
    for name, value in identity["choices"].items():
        if choices.get(name) != value:
            raise DestinationError(
                f"an unfinished conversion is there with another {name}: {choices.get(name)}, not {value}",
                where=destination,
                remedy=_FINISH_OTHERS,
            )
    for name, facts in identity["sources"].items():
        if not _is_same(sources.get(name), facts):
            raise DestinationError(
                f"an unfinished conversion is there, of another source, or its source has changed since: {name}",
                where=destination,
                remedy="say --restart to discard what it did and convert the source as it is now",
            )
    if known.get("digest") != identity["digest"]:
        raise DestinationError(
            "an unfinished conversion with other options is there", where=destination, remedy=_FINISH_OTHERS
        )


def _is_same(noted: Any, facts: list[Any]) -> bool:
    """Whether a source is the one that was noted: [bytes, time of change in ns, digest]."""
    try:
        nbytes, mtime_ns, digest = noted
        return [nbytes, digest] == [facts[0], facts[2]] and abs(mtime_ns - facts[1]) <= _MTIME_NS
    except (TypeError, ValueError):
        return False
