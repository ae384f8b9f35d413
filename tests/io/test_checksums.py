"""Checksums of records whose pieces pass in any order are those of the whole."""

from __future__ import annotations

import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.io.checksums import ChecksumBook, crc32


def count(book: ChecksumBook[Any], key: object, start: int, data: bytes | memoryview) -> None:
    book.add(key, start, len(data), crc32(data))


def pieces(data: bytes, cuts: list[int]) -> list[tuple[int, memoryview]]:
    """The data cut at ``cuts``, each piece with its start."""
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [(a, memoryview(data)[a:b]) for a, b in pairwise(bounds)]


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 200)), st.randoms(use_true_random=False))
def test_any_cuts_in_any_order_give_the_checksum_of_the_whole(data: bytes, cuts: list[int], rng: random.Random) -> None:
    parts = pieces(data, cuts)
    rng.shuffle(parts)
    book: ChecksumBook[str] = ChecksumBook()
    for start, part in parts[:-1]:
        count(book, "record", start, part)
        assert book.whole("record", len(data)) is None
    count(book, "record", *parts[-1])
    assert book.whole("record", len(data)) == zlib.crc32(data)


@given(
    st.binary(min_size=1, max_size=100),
    st.lists(st.integers(0, 100)),
    st.integers(2, 3),
    st.randoms(use_true_random=False),
)
def test_a_piece_that_passes_again_changes_nothing(
    data: bytes, cuts: list[int], times: int, rng: random.Random
) -> None:
    parts = pieces(data, cuts) * times
    rng.shuffle(parts)
    book: ChecksumBook[int] = ChecksumBook()
    for start, part in parts:
        count(book, 1, start, part)
    assert book.whole(1, len(data)) == zlib.crc32(data)


@given(
    st.binary(min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12),
    st.sampled_from([None, 1, 3]),
)
def test_what_is_missing_completes_any_pieces(data: bytes, ends: list[tuple[int, int]], most: int | None) -> None:
    """Whatever passed: pieces with gaps, pieces that overlap, and more of them than may wait."""
    book: ChecksumBook[int] = ChecksumBook(most)
    for first, second in ends:
        start, stop = sorted((min(first, len(data)), min(second, len(data))))
        count(book, 1, start, data[start:stop])
    missing = book.missing(1, len(data))
    assert (missing == []) == (book.whole(1, len(data)) is not None)
    for start, nbytes in missing:
        assert book.whole(1, len(data)) is None
        count(book, 1, start, data[start : start + nbytes])
    assert book.whole(1, len(data)) == zlib.crc32(data)
    assert book.missing(1, len(data)) == []


def test_what_has_passed_is_not_missing() -> None:
    book: ChecksumBook[int] = ChecksumBook()
    for start, part in pieces(bytes(100), [10, 30, 50, 90])[1::2]:
        count(book, 1, start, part)
    assert book.missing(1, 100) == [(0, 10), (30, 20), (90, 10)]


@pytest.mark.parametrize("missing", [0, 3, 7])
def test_a_record_with_a_gap_has_no_checksum(missing: int) -> None:
    data = bytes(range(80))
    book: ChecksumBook[str] = ChecksumBook()
    for number, (start, part) in enumerate(pieces(data, list(range(10, 80, 10)))):
        if number != missing:
            count(book, "record", start, part)
    assert book.whole("record", 80) is None
    count(book, "record", missing * 10, memoryview(data)[missing * 10 : missing * 10 + 10])
    assert book.whole("record", 80) == zlib.crc32(data)


def test_a_record_of_another_length_has_no_checksum() -> None:
    book: ChecksumBook[str] = ChecksumBook()
    count(book, "record", 0, memoryview(b"eight by"))
    assert book.whole("record", 8) == zlib.crc32(b"eight by")
    assert book.whole("record", 7) is None
    assert book.whole("record", 9) is None


def test_records_do_not_mix() -> None:
    one, two = bytes(range(100)), bytes(range(100, 200))
    book: ChecksumBook[tuple[int, int]] = ChecksumBook()
    for start in range(90, -1, -10):
        count(book, (0, 64), start, memoryview(one)[start : start + 10])
        count(book, (1, 64), start, memoryview(two)[start : start + 10])
    assert book.records() == [(0, 64), (1, 64)]
    assert book.whole((0, 64), 100) == zlib.crc32(one)
    assert book.whole((1, 64), 100) == zlib.crc32(two)


def test_what_never_passed_is_known_only_if_it_has_no_bytes() -> None:
    book: ChecksumBook[str] = ChecksumBook()
    assert book.whole("record", 1) is None
    assert book.whole("record", 0) == zlib.crc32(b"")
    assert book.records() == []


def test_a_piece_without_bytes_changes_nothing() -> None:
    data = b"some bytes"
    book: ChecksumBook[str] = ChecksumBook()
    for start, part in [(4, data[4:]), (4, b""), (0, b""), (0, data[:4]), (10, b"")]:
        count(book, "record", start, memoryview(part))
    assert book.whole("record", 10) == zlib.crc32(data)


def test_threads_may_add_at_once() -> None:
    size, piece = 1 << 20, 1 << 12
    records = [random.Random(seed).randbytes(size) for seed in range(3)]
    jobs = [(key, start) for key in range(3) for start in range(0, size, piece)] * 2
    random.Random(7).shuffle(jobs)
    book: ChecksumBook[int] = ChecksumBook()

    def add(job: tuple[int, int]) -> None:
        key, start = job
        count(book, key, start, memoryview(records[key])[start : start + piece])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, jobs))
    assert [book.whole(key, size) for key in range(3)] == [zlib.crc32(record) for record in records]


@pytest.mark.slow
def test_a_record_longer_than_four_gigabytes_joins_right() -> None:
    block = bytes(1 << 26)
    book: ChecksumBook[str] = ChecksumBook()
    expected = 0
    for number in range(2):  # the position counts beyond 32 bits: the second piece starts where no piece has ended
        count(book, "record", number * (1 << 32), memoryview(block))
    assert book.whole("record", (1 << 32) + len(block)) is None
    for number in range(1, 64):
        count(book, "record", number * len(block), memoryview(block))
    for _ in range(65):
        expected = zlib.crc32(block, expected)
    assert book.whole("record", 65 * len(block)) == expected
