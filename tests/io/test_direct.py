"""Places in pages: what direct transfers need of offsets, positions, buffers and files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.io.direct import (
    DIRECT_NBYTES,
    PAGE,
    congruent,
    is_direct,
    is_refusal,
    new_buffer,
    open_file,
    page_end,
    page_start,
)

pytestmark = pytest.mark.disk

OFFSETS = st.integers(0, 1 << 50)


@given(OFFSETS)
def test_a_page_begins_at_or_before_an_offset_and_ends_at_or_behind_it(offset: int) -> None:
    start, end = page_start(offset), page_end(offset)
    assert start % PAGE == end % PAGE == 0
    assert start <= offset <= end
    assert offset - start < PAGE
    assert end - offset < PAGE
    assert (start == end) == (offset % PAGE == 0)


@given(OFFSETS, OFFSETS)
def test_a_congruent_place_has_the_offsets_place_in_a_page_that_nothing_before_it_touches(
    position: int, offset: int
) -> None:
    place = congruent(position, offset)
    assert place % PAGE == offset % PAGE
    assert position <= page_start(place) < position + PAGE


@pytest.mark.parametrize("nbytes", [0, 1, PAGE - 1, PAGE, PAGE + 1, DIRECT_NBYTES + 777])
def test_a_buffer_is_whole_pages_of_zeros_that_begin_on_a_page(nbytes: int) -> None:
    buffer = new_buffer(nbytes)
    assert len(buffer) % PAGE == 0
    assert nbytes <= len(buffer) < nbytes + 2 * PAGE
    assert buffer[:] == bytes(len(buffer))
    assert np.frombuffer(buffer, np.uint8).ctypes.data % PAGE == 0


@given(OFFSETS, st.integers(0, 1 << 20), st.integers(0, 4 * DIRECT_NBYTES))
def test_what_is_long_and_has_the_same_place_in_its_page_goes_directly(offset: int, position: int, nbytes: int) -> None:
    buffer = new_buffer(PAGE)
    expected = nbytes >= DIRECT_NBYTES and (position - offset) % PAGE == 0
    assert is_direct(offset, buffer, position, nbytes) == expected
    assert is_direct(offset, buffer, congruent(position, offset), nbytes) == (nbytes >= DIRECT_NBYTES)


@pytest.mark.parametrize("buffer", [bytes(PAGE), bytearray(PAGE)], ids=["bytes", "bytearray"])
def test_memory_that_may_begin_anywhere_never_goes_directly(buffer: bytes | bytearray) -> None:
    assert not is_direct(0, buffer, 0, DIRECT_NBYTES)
    assert is_direct(0, new_buffer(1), 0, DIRECT_NBYTES)


def test_only_a_file_systems_no_is_a_refusal() -> None:
    assert is_refusal(OSError(errno.EINVAL, "not aligned"))
    assert is_refusal(OSError(errno.EOPNOTSUPP, "no such thing"))
    for code in (errno.EIO, errno.ENOSPC, errno.EBADF, errno.EISDIR):
        assert not is_refusal(OSError(code, "something else"))


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_is_opened_directly_only_where_that_was_asked(direct: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 32)
    fd, is_it = open_file(tmp_path / "file", os.O_RDONLY, direct=direct)
    try:
        assert not is_it or direct
        assert not os.get_inheritable(fd)
        buffer = new_buffer(2 * PAGE)
        assert os.preadv(fd, [buffer], 0) == 2 * PAGE
        assert buffer[:] == bytes(range(256)) * 32
    finally:
        os.close(fd)


def test_a_file_system_without_direct_transfers_is_opened_all_the_same() -> None:
    fd, is_it = open_file(Path("/proc/self/status"), os.O_RDONLY, direct=True)
    try:
        assert not is_it
        assert os.pread(fd, 5, 0) == b"Name:"
    finally:
        os.close(fd)


def test_a_file_that_is_not_there_is_said_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    for direct in (True, False):
        with pytest.raises(FileNotFoundError):
            open_file(tmp_path / "nowhere", os.O_RDONLY, direct=direct)
    assert list(Path("/proc/self/fd").iterdir()) == before
