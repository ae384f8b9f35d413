"""What streamconv itself leaves in a destination, and by what others know what is going on there."""

from __future__ import annotations

import json
from pathlib import Path

from streamconv.core.errors import DamagedError

__all__ = ["INTENT", "JOURNAL", "RECEIPT", "WORK_FOLDER", "refuse_unfinished"]

WORK_FOLDER = ".streamconv"
"""The folder in a destination in which its result is staged. It is gone when the work is done."""

JOURNAL = "journal"
"""The journal of a run that has not ended, or ended early."""

INTENT = "publishing.json"
"""What a run is moving into place: it is there while names in the destination change."""

RECEIPT = "streamconv.json"
"""In the result, what it was made of: by it the same command knows its own work."""


def refuse_unfinished(folder: Path) -> None:
    """Refuse a source whose files may be of two checkpoints, since a run that replaced one was cut off.

    Args:
        folder: a root, or the folder of one checkpoint in it.

    Raises:
        DamagedError: a publication has begun there, and its commit record has not been put in place.
    """
    for root, name in ((folder, None), (folder.parent, folder.name)):
        work = root / WORK_FOLDER
        moved = _being_moved(work)
        if moved is not None and (name is None or name in moved):
            raise DamagedError(
                "a conversion into this folder was cut off while it moved its result into place: the files may be of "
                "two checkpoints",
                where=work / INTENT,
                remedy="run the command of that conversion again: it puts the old checkpoint back, then finishes",
            )


def _being_moved(work: Path) -> set[str] | None:
    """The names that an unfinished publication moves; None if there is none."""
    try:
        noted = json.loads((work / INTENT).read_text())
        names, record = {*noted["entries"], *noted["retired"]}, work / noted["texts"][-1]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return names if record.exists() else None
