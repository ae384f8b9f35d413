"""Changes of real files: bytes, numbers, blocks, ends, and pieces of other files."""

from __future__ import annotations

import io
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise

from tests.fuzz.grow import Grower
from tests.fuzz.parts import Entry, zipped

BYTES = (0, 1, 0x7F, 0x80, 0xFF, ord("."), ord("R"), ord("h"), ord("\n"), ord("/"), 0x1B)
NUMBERS = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
# What a zip or a pickle raises that has been changed before.
_CHANGED_BEFORE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    LookupError,
    EOFError,
    OSError,
    RuntimeError,
)
Change = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def _byte(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[rng.randrange(len(data))] = rng.choice((*BYTES, rng.randrange(256)))


def _bit(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    form = rng.choice(("<H", "<I", "<Q"))
    raw = struct.pack(form, rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(form)) - 1))
    place = rng.randrange(len(data))
    data[place : place + len(raw)] = raw


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _gone(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.choice((1, 2, 8, 64, 512))]


def _twice(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    place, length = rng.randrange(len(data)), rng.choice((1, 4, 16, 128, 1024))
    data[place:place] = data[place : place + length] * rng.choice((1, 1, 2, 50))


def _piece(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    start, place = rng.randrange(len(other) or 1), rng.randrange(len(data))
    data[place : place + rng.choice((0, 8, 64))] = other[start : start + rng.choice((8, 64, 512))]


def _end(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    data += bytes(rng.choice((b"\0", b".", b"}", rng.randbytes(8)))) * rng.choice((1, 9, 100))


CHANGES: tuple[Change, ...] = (_byte, _bit, _number, _cut, _gone, _twice, _piece, _end)


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Some bytes, changed once or a few times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if changed:
            rng.choice(CHANGES)(rng, changed, others)
    return bytes(changed)


_CONSTANTS = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE")
)


def exchanged(rng: random.Random, pickled: bytes) -> bytes:
    """A pickle in which a few constants are other values: what reads it meets them where it expects its own."""
    try:
        found = [(code, place) for code, _, place in pickletools.genops(pickled) if place is not None]
    except (ValueError, IndexError, KeyError, struct.error):
        return pickled  # it has been changed before
    ends = [*(place for _, place in found[1:]), len(pickled)]
    places = [(place, end) for (code, place), end in zip(found, ends, strict=True) if code.name in _CONSTANTS]
    grower = Grower(rng, first=50_000)
    for start, end in sorted(rng.sample(places, min(len(places), rng.choice((1, 1, 2, 4)))), reverse=True):
        pickled = pickled[:start] + grower.value(rng.choice((0, 3, 5))) + pickled[end:]
    return pickled


def with_value(pickled: bytes, name: str, value: bytes) -> bytes:
    """A pickle in which the constant beside each string ``name`` is another value."""
    found = [(code.name, arg, place) for code, arg, place in pickletools.genops(pickled) if place is not None]
    ends = dict(pairwise([place for _, _, place in found]))
    values = [entry for entry in found if not entry[0].endswith("PUT") and entry[0] != "MEMOIZE"]
    places = [start for (_, arg, _), (code, _, start) in pairwise(values) if arg == name and code in _CONSTANTS]
    for start in reversed(places):
        pickled = pickled[:start] + value + pickled[ends[start] :]
    return pickled


def repickled(data: bytes, name: str, value: bytes) -> bytes:
    """A zip of torch in whose pickle the constant beside each string ``name`` is another value."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
        changed = {
            key: with_value(raw, name, value) if key.endswith("data.pkl") else raw for key, raw in records.items()
        }
    except _CHANGED_BEFORE:
        return data
    return zipped([Entry.of(key, content) for key, content in changed.items()])


def rezipped(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A zip with one record changed and right checksums, so that what reads the record meets the change."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
    except _CHANGED_BEFORE:
        return mutated(rng, data, others)
    if not records:
        return data
    names = [name for name in records if name.endswith("data.pkl")]
    name = rng.choice([*names, *names, *names, *records])
    is_pickle = name.endswith("data.pkl") and rng.random() < 0.7
    records[name] = exchanged(rng, records[name]) if is_pickle else mutated(rng, records[name], others)
    entries = [Entry.of(name, content) for name, content in records.items()]
    if rng.random() < 0.05:
        entries.append(rng.choice(entries))
    if rng.random() < 0.05:
        entries[-1].place = rng.randrange(len(data))
    return zipped(entries)
