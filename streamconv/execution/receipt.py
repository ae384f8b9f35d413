"""The receipt of a conversion, in its result: by it the same command knows its own work, and does not do it again.

It has nothing of the machine or the hour in it, so that the same conversion writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.core.errors import SourceError
from streamconv.core.version import __version__
from streamconv.core.work_folder import RECEIPT
from streamconv.execution.identity import digest_of
from streamconv.io.reading import reading
from streamconv.planning.plan import Plan

__all__ = ["is_receipt", "is_result_of", "receipt_of"]

_MOST = 1 << 20


def receipt_of(work: Plan, identity: Mapping[str, Any]) -> str:
    """The text of a conversion's receipt: what made the result, of what, and the digest of the run's identity."""
    said = {
        "streamconv": __version__,
        "source": f"{work.source_format}: {work.source_layout}",
        "target": f"{work.target_format}: {work.target_layout}",
        "family": work.family,
        "iteration": work.iteration,
        "digest": digest_of(identity),
    }
    return json.dumps(said, indent=2) + "\n"


def is_result_of(work: Plan, identity: Mapping[str, Any], destination: Path) -> bool:
    """Whether a destination holds the whole result of this very run, published earlier and not touched since.

    The receipt is compared, the small files, and of the others the size, and the time of change: nothing may be younger
    than the receipt, which is written after them. Their values are not read: that is what ``verify`` does.

    Raises:
        OSError: the system refused to look.
    """
    receipt = destination / RECEIPT
    if _receipt_digest(receipt) != digest_of(identity):
        return False
    written = receipt.stat().st_mtime_ns
    copied = {name: path.stat().st_size for name, path in work.copied.items()}
    for name, nbytes in {**{file.path: file.layout.nbytes for file in work.files}, **copied}.items():
        path = destination / name
        if path.is_symlink() or not path.is_file():
            return False
        status = path.stat()
        if status.st_size != nbytes or status.st_mtime_ns > written:
            return False
    texts = {**work.small, **work.texts}
    return all(_has(destination / name, text) for name, text in texts.items())


def is_receipt(path: Path) -> bool:
    """Whether a file is a receipt, and not one of the user's that has its name.

    Raises:
        StorageError: the system refused to read it.
    """
    return _receipt_digest(path) is not None


def _receipt_digest(path: Path) -> str | None:
    try:
        with reading(path) as file:
            said = json.loads(file.read(0, _MOST))
        return str(said["digest"])
    except (SourceError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _has(path: Path, text: str | bytes) -> bool:
    data = text.encode() if isinstance(text, str) else text
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
