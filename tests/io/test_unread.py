"""The rest of a record is read, whatever was read of it before, and its checksum is then that of the whole."""

from __future__ import annotations

import random
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from streamconv.core.counting import Counted
from streamconv.core.errors import DamagedError
from streamconv.core.views import Storage
from streamconv.io.checksums import RecordCounts, SourceChecksums, crc32
from streamconv.io.direct import PAGE, new_buffer
from streamconv.io.source import IO_MODES, SourceFiles
from streamconv.io.unread import read_unread

SIZE = 300_000
DATA = random.Random(5).randbytes(SIZE)
Pieces = list[tuple[int, int]]
READ: dict[str, tuple[Pieces, int]] = {
    # (start, nbytes) of each piece that was read, and the bytes that remain to be read
    "nothing but the middle": ([(1000, 250_000)], SIZE - 250_000),
    "the beginning": ([(0, 299_999)], 1),
    "two parts that are far from one another": ([(0, 50), (100_000, 140_000)], SIZE - 140_050),
    "every second byte, so that near parts are read in one go": ([(n, 1) for n in range(0, SIZE, 2)], SIZE - 1),
    "parts that overlap": ([(10, 100), (50, 200), (60, 100_000)], SIZE),
    "all": ([(150_000, 150_000), (0, 150_000)], 0),
}


def record(path: Path, before: int = 1234) -> Storage:
    path.write_bytes(bytes(before) + DATA + b"after")
    return Storage(path, before, SIZE, "data/0", crc32(DATA))


def begun(storage: Storage, pieces: Pieces) -> SourceChecksums:
    checksums = SourceChecksums()
    for start, nbytes in pieces:
        checksums.add(storage, start, nbytes, crc32(memoryview(DATA)[start : start + nbytes]))
    return checksums


def read_rest(checksums: SourceChecksums, io: str, threads: int) -> int:
    """Read the rest; the bytes that were read, all of which were expected and counted."""
    seen = [(0, 0)]
    with ExitStack() as stack:
        readers = [(stack.enter_context(closing(SourceFiles(io))), new_buffer(5 * PAGE)) for _ in range(threads)]
        nbytes = read_unread(checksums, readers, Counted(0, lambda done, total: seen.append((done, total))))
    assert max(seen) == (nbytes, nbytes)
    return nbytes


@pytest.mark.parametrize(("io", "threads"), [(io, threads) for io in IO_MODES for threads in (1, 3)])
@pytest.mark.parametrize("read", READ)
def test_the_rest_completes_the_checksum(read: str, io: str, threads: int, tmp_path: Path) -> None:
    pieces, rest = READ[read]
    checksums = begun(record(tmp_path / "file"), pieces)
    nbytes = read_rest(checksums, io, threads)
    # A part may have to be read again: one whose first byte was there already, or that was read out of order.
    assert rest <= nbytes <= rest + threads * 3 * PAGE
    assert checksums.verdict() == RecordCounts(checked=1, in_part=0, without_crc=0)


@pytest.mark.parametrize("read", [name for name in READ if name != "all"])
def test_a_bit_of_the_rest_is_found(read: str, tmp_path: Path) -> None:
    storage = record(tmp_path / "file")
    checksums = begun(storage, READ[read][0])
    (start, nbytes) = checksums.unread()[-1][1:]
    content = bytearray(storage.path.read_bytes())
    content[storage.offset + start + nbytes - 1] ^= 16
    storage.path.write_bytes(content)
    with pytest.raises(DamagedError, match="record data/0: its CRC-32 is "):
        read_rest(checksums, "pread", 2)


def test_records_without_a_checksum_and_records_not_begun_are_left(tmp_path: Path) -> None:
    storage = record(tmp_path / "file")
    bare = Storage(storage.path, 0, 1000, "bare")
    checksums = SourceChecksums()
    checksums.add(bare, 10, 20, 0)
    assert read_rest(checksums, "direct", 1) == 0
    assert checksums.verdict() == RecordCounts(checked=0, in_part=0, without_crc=1)
