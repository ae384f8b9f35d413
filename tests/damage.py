"""Flip bits in checkpoint files, mend the checksums of torch's zips, and set tensors to other values."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import torch

import streamconv

# Offsets of the CRC-32 in a zip's local header, its central directory entry and its data descriptor.
_LOCAL, _LOCAL_CRC, _ENTRY, _ENTRY_CRC, _DESCRIPTOR_CRC = 30, 14, 46, 16, 4


def records(path: Path) -> dict[str, tuple[int, int]]:
    """Each record of a zip by its name without the root: (first byte in the file, bytes)."""
    data = path.read_bytes()
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            lengths = struct.unpack_from("<HH", data, info.header_offset + 26)
            name = info.filename.partition("/")[2]
            found[name] = info.header_offset + _LOCAL + sum(lengths), info.file_size
    return found


def flip(path: Path, byte: int, bit: int) -> None:
    """Turn one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(byte)
        (old,) = file.read(1)
        file.seek(byte)
        file.write(bytes([old ^ 1 << bit]))


def mend(path: Path) -> None:
    """Record the CRC-32 that each record has now: in the central directory, and in header or data descriptor."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        infos, place = archive.infolist(), archive.start_dir
    where = records(path)
    for info in infos:
        start, nbytes = where[info.filename.partition("/")[2]]
        crc = zlib.crc32(data[start : start + nbytes])
        if info.flag_bits & 8:
            assert data[start + nbytes : start + nbytes + 4] == b"PK\x07\x08"
            struct.pack_into("<I", data, start + nbytes + _DESCRIPTOR_CRC, crc)
        else:
            struct.pack_into("<I", data, info.header_offset + _LOCAL_CRC, crc)
        assert data[place : place + 4] == b"PK\x01\x02"
        struct.pack_into("<I", data, place + _ENTRY_CRC, crc)
        place += _ENTRY + sum(struct.unpack_from("<HHH", data, place + 28))
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def set_tensor(path: Path, name: str, value: torch.Tensor) -> None:
    """Write other values to a tensor of a torch file, of its type and shape, where it is contiguous; its checksum is
    mended. What else is in the file stays, whatever classes that needs.
    """
    (view,) = streamconv.open_checkpoint(path)[name].pieces[0].views
    with path.open("r+b") as file:
        file.seek(view.storage.offset + view.span(value.shape)[0])
        file.write(value.contiguous().view(torch.uint8).numpy().tobytes())
    mend(path)


def cut(path: Path, nbytes: int) -> None:
    """Keep the first ``nbytes`` of a file."""
    with path.open("r+b") as file:
        file.truncate(nbytes)
