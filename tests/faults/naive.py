"""A writer that makes the mistakes which the tests of this folder look for, to show that they would be found.

It copies the files of a folder straight into the destination. It syncs nothing, takes no notice of errors, writes the
commit record first, in the middle or at the end, and if it is started again it takes each file that exists for whole.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

RECORD = "latest"
PIECE = 1 << 10


def convert(source: Path, destination: Path, when: str) -> int:
    """Copy; the record is written ``first``, in the ``middle`` or ``last``."""
    destination.mkdir(exist_ok=True)
    names = sorted(path.name for path in source.iterdir() if path.name != RECORD)
    names.insert({"first": 0, "middle": len(names) // 2, "last": len(names)}[when], RECORD)
    for name in names:
        if not (destination / name).exists():
            with suppress(OSError), (destination / name).open("wb", buffering=PIECE) as file:
                data = (source / name).read_bytes()
                for offset in range(0, len(data), PIECE):
                    file.write(data[offset : offset + PIECE])
    return 0
