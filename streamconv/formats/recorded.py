"""What Megatron-LM and Megatron-DeepSpeed record in the same way: the folder, the iteration, the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Record
from streamconv.core.errors import DamagedError, SourceError

__all__ = [
    "RELEASE",
    "find_iteration",
    "first_line",
    "is_child_name",
    "iteration_of",
    "recorded_args",
    "tagged_folder",
    "true_vocabulary",
    "whole",
]

# NAME_MAX of Linux: what asks for more is answered with an error, not with "no such file".
_LONGEST_NAME = 255


def whole(value: Any) -> int | None:
    """A whole number that is recorded; None for anything else. A truth value is one to Python, and is none here."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def recorded_args(state: Mapping[str, Any], where: Path) -> Mapping[str, Any] | None:
    """The training arguments beside a model, an ``argparse.Namespace`` or another object's attributes; None if there
    are none.

    Raises:
        DamagedError: ``args`` is something else.
    """
    found = state.get("args")
    if found is None:
        return None
    if not isinstance(found, Record):
        raise DamagedError(f"`args` is no namespace of arguments: {str(found)[:60]}", where=where)
    return found.attributes


RELEASE = "release"
"""The folder of a model that Megatron-LM did not train [``checkpointing.py:get_checkpoint_name``]."""


def first_line(path: Path) -> str:
    """What a commit record says, whatever bytes it holds."""
    with path.open("rb") as file:
        return file.read(4096).decode("utf-8", errors="replace").strip()


def is_child_name(name: str) -> bool:
    """Whether a name can only be that of a direct child: it may come out of a file."""
    nbytes = len(name.encode("utf-8", "surrogatepass"))
    return 0 < nbytes <= _LONGEST_NAME and name not in (".", "..") and not any(sign in name for sign in "/\\\0")


def tagged_folder(path: Path, name: str, said_by: Path) -> Path:
    """The folder ``name`` directly below ``path``.

    Args:
        path: the checkpoint's root.
        name: the tag.
        said_by: who says the name, for the message.

    Raises:
        DamagedError: it is not the name of a direct child.
        SourceError: there is no such folder.
    """
    if not is_child_name(name):
        raise DamagedError(f"the tag {name[:80]!r} is not the name of a folder", where=said_by)
    if not (path / name).is_dir():
        tags = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise SourceError(
            f"there is no folder for the tag {name!r}",
            where=path,
            remedy=f"name one with --tag: {', '.join(tags)}" if tags else None,
        )
    return path / name


def find_iteration(folder: Path, state: Mapping[str, Any], said: int | None) -> int | None:
    """The training iteration: as the user says it, as a rank's file records it, or as the folder is named. A release
    that records none, or 0 as Megatron-LM wants it there, has no iteration.

    Raises:
        DamagedError: what is recorded cannot be one.
    """
    if said is not None:
        return said
    recorded = whole(state.get("iteration"))
    if folder.name == RELEASE and recorded == 0:
        return None
    if recorded is not None:
        if not 0 <= recorded < 10**9:
            raise DamagedError(f"the iteration is recorded as {recorded}", where=folder, remedy="say --iteration N")
        return recorded
    return iteration_of(folder.name)


def iteration_of(folder_name: str) -> int | None:
    """The iteration that a folder is named for: 3 for DeepSpeed's ``global_step3``, Megatron-LM's ``iter_0000003``."""
    match = re.fullmatch(r"(?:global_step|iter_)([0-9]+)", folder_name)
    return int(match[1]) if match else None


def true_vocabulary(state: Mapping[str, Any]) -> int | None:
    """The vocabulary without padding: ``checkpoint_info`` (bigscience) or ``universal_checkpoint_info`` (deepspeedai)
    records it. Megatron-LM's own files do not: ``args.vocab_size`` there is what the user said, before special tokens.
    """
    for key in ("checkpoint_info", "universal_checkpoint_info"):
        info = state.get(key)
        size = whole(info.get("original_vocab_size")) if isinstance(info, dict) else None
        if size is not None:
            return size
    return None
