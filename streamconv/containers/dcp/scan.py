"""Find the torch zips that follow one another in a file, from the last to the first, by their end records.

A zip's last records, from APPNOTE.TXT 4.3.14 to 4.3.16 and ``caffe2/serialize/inline_container.cc`` (miniz), which
writes no comment and always the zip64 pair: the directory, the zip64 end (56 bytes), its locator (20), the end (22).
The end contains the directory's length and its offset from the zip's beginning. Both give the zip's beginning, which is
where the zip before it ends. Nothing else is read.
"""

from __future__ import annotations

import struct

from streamconv.core.errors import DamagedError
from streamconv.io.reading import InputFile

__all__ = ["scan"]

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_END_MAGIC, _LOCATOR_MAGIC, _END64_MAGIC, _FIRST_MAGIC = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06", b"PK\x03\x04"


def scan(file: InputFile) -> list[tuple[int, int]]:
    """(offset, nbytes) of each zip in a file, in the order of the file.

    Raises:
        DamagedError: the file does not consist of whole zips.
        StorageError: the system refused to read.
    """
    zips: list[tuple[int, int]] = []
    end = file.nbytes
    while end > 0:
        start = _start_of(file, end)
        if start is None:
            raise DamagedError(
                f"no zip ends at byte {end} of {file.nbytes}: the file is cut off, or holds something else than torch "
                "zips",
                where=file.path,
                remedy="put the .metadata of its folder beside it, which says where its parts are",
            )
        zips.append((start, end - start))
        end = start
    return zips[::-1]


def _start_of(file: InputFile, end: int) -> int | None:
    """The offset of the zip that ends at ``end``; None if none does."""
    tail_nbytes = min(end, _END64.size + _LOCATOR.size + _END.size)
    tail = file.read(end - tail_nbytes, tail_nbytes)
    if tail_nbytes < _END.size:
        return None
    magic, *_, length, place, comment = _END.unpack(tail[-_END.size :])
    if magic != _END_MAGIC or comment:
        return None
    after = end - _END.size
    if len(tail) == _END64.size + _LOCATOR.size + _END.size and tail[_END64.size :].startswith(_LOCATOR_MAGIC):
        magic, *_, length, place = _END64.unpack(tail[: _END64.size])
        if magic != _END64_MAGIC:
            return None
        after -= _END64.size + _LOCATOR.size
        _, _, located, _ = _LOCATOR.unpack(tail[_END64.size : -_END.size])
        if located != place + length:
            return None
    start = after - length - place
    if start < 0 or file.read(start, len(_FIRST_MAGIC)) != _FIRST_MAGIC:
        return None
    return int(start)
