"""Records that Megatron-LM and Megatron-DeepSpeed share: the folder, the iteration, the arguments, the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Record
from streamconv.core.errors import DamagedError, SourceError
from streamconv.io.reading import reading

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

# NAME_MAX of Linux: a longer name raises OSError instead of being reported as missing.
_LONGEST_NAME = 255


def whole(value: Any) -> int | None:
    """The value if it is a whole number, else None; a bool, which Python takes for one, is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def recorded_args(state: Mapping[str, Any], where: Path) -> Mapping[str, Any] | None:
    """The training arguments beside a model, the attributes of an ``argparse.Namespace`` or another object; None if
    there are none.

    Raises:
        DamagedError: ``args`` is something else.
    """
    args = state.get("args")
    if args is None:
        return None
    if not isinstance(args, Record):
        raise DamagedError(f"`args` is no namespace of arguments: {str(args)[:60]}", where=where)
    return args.attributes


RELEASE = "release"
"""The folder of a model that Megatron-LM did not train [``checkpointing.py:get_checkpoint_name``]."""


def first_line(path: Path) -> str:
    """The text of a commit record, stripped; bytes that are not UTF-8 are replaced.

    Raises:
        SourceError: there is no such file.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        return file.read(0, 4096).decode("utf-8", errors="replace").strip()


def is_child_name(name: str) -> bool:
    """Whether a name, which may come from a file, can only be that of a direct child."""
    nbytes = len(name.encode("utf-8", "surrogatepass"))
    return 0 < nbytes <= _LONGEST_NAME and name not in (".", "..") and not any(sign in name for sign in "/\\\0")


def tagged_folder(path: Path, name: str, said_by: Path) -> Path:
    """The folder ``name`` directly below ``path``.

    Args:
        path: the checkpoint's root.
        name: the tag.
        said_by: the file that has the name, for the message.

    Raises:
        DamagedError: ``name`` is not the name of a direct child.
        SourceError: there is no such folder.
    """
    if not is_child_name(name):
        raise DamagedError(
            f"the tag {name[:80]!r} is not the name of a folder",
            where=said_by,
            remedy="say which folder is meant with --tag, or give that folder",
        )
    if not (path / name).is_dir():
        tags = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise SourceError(
            f"there is no folder for the tag {name!r}",
            where=path,
            remedy=f"name one with --tag: {', '.join(tags)}" if tags else None,
        )
    return path / name


def find_iteration(folder: Path, state: Mapping[str, Any], said: int | None) -> int | None:
    """The training iteration: the user's, else that of a rank's file, else that of the folder's name. A ``release``
    folder has none if nothing is recorded, or 0, which Megatron-LM requires there.

    Raises:
        DamagedError: the recorded number cannot be an iteration.
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
    """The iteration in a folder's name: 3 for DeepSpeed's ``global_step3``, Megatron-LM's ``iter_0000003``."""
    match = re.fullmatch(r"(?:global_step|iter_)([0-9]+)", folder_name)
    return int(match[1]) if match else None


def true_vocabulary(state: Mapping[str, Any]) -> int | None:
    """The vocabulary without padding, from ``checkpoint_info`` (bigscience) or ``universal_checkpoint_info``
    (deepspeedai). Megatron-LM does not record it: its ``args.vocab_size`` is the user's, before special tokens.
    """
    for key in ("checkpoint_info", "universal_checkpoint_info"):
        info = state.get(key)
        size = whole(info.get("original_vocab_size")) if isinstance(info, dict) else None
        if size is not None:
            return size
    return None
