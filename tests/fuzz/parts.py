"""The parts of hostile files, written by hand: instructions of pickles, zips, headers of safetensors.

torch and ``pickle`` write none of these: what they write holds no value a million times and names no record twice.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROTO = b"\x80\x02"
STOP = b"."
_LOCAL, _ENTRY, _END = "<IHHHHHIIIHH", "<IHHHHHHIIIHHHHHII", "<IHHHHIIH"


# -- pickles -----------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    """A string."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """An integer."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    """A class or function."""
    return b"c" + f"{module}\n{name}\n".encode("utf-8", "surrogatepass")


def pair(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def row(*values: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(values) + b"e"


def table(**values: bytes) -> bytes:
    """A dictionary with strings as keys."""
    return entries([(text(key), value) for key, value in values.items()])


def entries(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A dictionary."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def call(module: str, name: str, *args: bytes) -> bytes:
    """A call."""
    return named(module, name) + pair(*args) + b"R"


def namespace(**values: bytes) -> bytes:
    """An ``argparse.Namespace``."""
    return named("argparse", "Namespace") + b")\x81" + table(**values) + b"b"


def kept(index: int) -> bytes:
    """Keep the value on top under a number."""
    return b"r" + struct.pack("<I", index)


def again(index: int) -> bytes:
    """The value that is kept under a number."""
    return b"j" + struct.pack("<I", index)


def storage(key: str = "0", cls: str = "FloatStorage", numel: int = 16) -> bytes:
    """A storage of a zip."""
    return pair(text("storage"), named("torch", cls), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(
    size: Sequence[int] = (4, 4),
    stride: Sequence[int] = (4, 1),
    *,
    offset: int = 0,
    key: str = "0",
    cls: str = "FloatStorage",
    numel: int = 16,
) -> bytes:
    """A tensor of a zip's storage."""
    sizes, strides = pair(*map(number, size)), pair(*map(number, stride))
    ordered = call("collections", "OrderedDict")
    args = (storage(key, cls, numel), number(offset), sizes, strides, b"\x89", ordered)
    return call("torch._utils", "_rebuild_tensor_v2", *args)


def shared(wrap: Any, leaf: bytes, width: int, depth: int) -> bytes:
    """A value that holds ``leaf`` width^depth times: each level holds the one below ``width`` times."""
    out = wrap(*[leaf] * width)
    for level in range(depth - 1):
        out += kept(1000 + level) + b"0" + wrap(*[again(1000 + level)] * width)
    return bytes(out)


# -- zips --------------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A record of a zip, and the place of another one whose bytes it claims."""

    name: bytes
    data: bytes
    crc: int
    place: int | None = None

    @classmethod
    def of(cls, name: str, data: bytes) -> Entry:
        """A record with its own bytes."""
        return cls(name.encode("utf-8", "surrogatepass"), data, zlib.crc32(data))


def zipped(records: Sequence[Entry]) -> bytes:
    """An uncompressed zip, as ``torch.save`` writes it but for the alignment."""
    body, directory = bytearray(), bytearray()
    for record in records:
        place, crc, size = len(body) if record.place is None else record.place, record.crc, len(record.data)
        if record.place is None:
            body += struct.pack(_LOCAL, 0x04034B50, 20, 0x800, 0, 0, 0, crc, size, size, len(record.name), 0)
            body += record.name + record.data
        fields = (0x02014B50, 20, 20, 0x800, 0, 0, 0, crc, size, size, len(record.name), 0, 0, 0, 0, 0, place)
        directory += struct.pack(_ENTRY, *fields) + record.name
    count, start = len(records), len(body)
    return bytes(body + directory + struct.pack(_END, 0x06054B50, 0, 0, count, count, len(directory), start, 0))


def torch_zip(tree: bytes, storages: Mapping[str, bytes] | None = None, more: Sequence[Entry] = ()) -> bytes:
    """A file of ``torch.save``: ``tree`` are instructions that leave one value."""
    data = {"0": bytes(64)} if storages is None else storages
    records = [Entry.of("a/data.pkl", PROTO + tree + STOP), Entry.of("a/byteorder", b"little")]
    records += [Entry.of(f"a/data/{key}", content) for key, content in data.items()]
    return zipped([*records, Entry.of("a/version", b"3\n"), *more])


def torch_old(tree: bytes, keys: Sequence[str] = (), numel: int = 0) -> bytes:
    """A file of torch before 1.6 with float storages."""
    magic = number(0x1950A86A20F9469CFC6C)
    machine = table(little_endian=b"\x88", protocol_version=number(1001))
    pickles = (magic, number(1001), machine, tree, row(*map(text, keys)))
    data = b"".join(struct.pack("<q", numel) + bytes(4 * numel) for _ in keys)
    return b"".join(PROTO + part + STOP for part in pickles) + data


# -- safetensors -------------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A file of safetensors; the header may be bytes as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data
