"""A read brings the wanted bytes and nothing else, however it is made; a file that ends early says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv.core.errors import StorageError, UsageError
from streamconv.io.direct import DIRECT_NBYTES, PAGE, congruent, is_direct, new_buffer, page_end, page_start
from streamconv.io.source import IO_MODES, SourceFiles
from tests.places import ROOT

pytestmark = pytest.mark.disk

LABELS = np.arange(5 * DIRECT_NBYTES // 4, dtype=np.uint32).tobytes() + b"the end"
SIZE = len(LABELS)
UNTOUCHED = 0xEE
OFFSETS = (0, 1, 511, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 100, DIRECT_NBYTES - 7)
LENGTHS = (1, PAGE, DIRECT_NBYTES - 1, DIRECT_NBYTES, DIRECT_NBYTES + 1, DIRECT_NBYTES + PAGE, 2 * DIRECT_NBYTES + 777)
SHIFTS = (0, 1, 64, PAGE - 1)


def put(path: Path, data: bytes = LABELS) -> Path:
    """The bytes as a file, of which the page cache has nothing where the file system writes to a disk."""
    path.write_bytes(data)
    drop(path)
    return path


def drop(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@pytest.fixture(params=["disk", "shm"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The labelled file, on a disk and in memory."""
    if request.param == "disk":
        yield put(tmp_path / "file")
        return
    if not Path("/dev/shm").is_dir():  # noqa: S108 - a file system in memory, where there is one
        pytest.skip("no /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield put(Path(folder) / "file")


def check_read(files: SourceFiles, path: Path, offset: int, nbytes: int, position: int, data: bytes = LABELS) -> bool:
    """Read into a buffer of sentinels: the bytes must be the wanted ones, and only whole pages around a direct read may
    have changed, into what the file has there (behind its end: into anything). Whether any did.
    """
    buffer = new_buffer(position + nbytes + 3 * PAGE)
    sentinels = bytes([UNTOUCHED]) * len(buffer)
    buffer[:] = sentinels
    files.read_into(path, offset, buffer, position, nbytes)
    assert buffer[position : position + nbytes] == data[offset : offset + nbytes]
    low, high = position, position + nbytes
    if is_direct(offset, buffer, position, nbytes):
        low, high = page_start(low), page_end(high)
    assert buffer[:low] == sentinels[:low]
    assert buffer[high:] == sentinels[high:]
    before, behind = buffer[low:position], buffer[position + nbytes : high]
    changed = (before + behind) != sentinels[: len(before) + len(behind)]
    if changed:
        assert before == data[offset - len(before) : offset]
        assert behind.startswith(data[offset + nbytes : offset + nbytes + len(behind)])
    return changed


@pytest.mark.parametrize("io", IO_MODES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_read_from_anywhere_to_anywhere_brings_just_the_bytes(shift: int, io: str, path: Path) -> None:
    with closing(SourceFiles(io)) as files:
        for offset, nbytes in product(OFFSETS, LENGTHS):
            check_read(files, path, offset, nbytes, congruent(2 * PAGE, offset) + shift)


@pytest.mark.parametrize("io", IO_MODES)
@pytest.mark.parametrize("nbytes", LENGTHS)
def test_the_last_page_of_the_file_is_read(nbytes: int, io: str, path: Path) -> None:
    with closing(SourceFiles(io)) as files:
        for behind, shift in product((0, 1, 6, 7, 8, PAGE, PAGE + 7), SHIFTS):
            offset = SIZE - nbytes - behind
            check_read(files, path, offset, nbytes, congruent(0, offset) + shift)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offset=st.integers(0, SIZE - 1),
    nbytes=st.one_of(st.integers(0, SIZE), st.sampled_from(LENGTHS)),
    position=st.integers(0, 3 * PAGE),
    places=st.booleans(),
    io=st.sampled_from(IO_MODES),
)
def test_any_read_brings_just_the_bytes(
    offset: int, nbytes: int, position: int, places: bool, io: str, path: Path
) -> None:
    with closing(SourceFiles(io)) as files:
        place = congruent(position, offset) if places else position
        check_read(files, path, offset, min(nbytes, SIZE - offset), place)


def test_a_long_read_of_a_cold_file_goes_past_the_page_cache(tmp_path: Path) -> None:
    """Told by the rest of the pages around it, which only a direct read brings along."""
    cold = put(tmp_path / "file")
    with closing(SourceFiles("direct")) as files:
        if not check_read(files, cold, 100, DIRECT_NBYTES, 100):
            pytest.skip("this file system does not transfer directly, or keeps everything in memory")
        assert check_read(files, cold, 3 * PAGE - 1, 2 * DIRECT_NBYTES, 5 * PAGE - 1)
        assert not check_read(files, cold, 100, DIRECT_NBYTES, 101)
        assert not check_read(files, cold, 100, DIRECT_NBYTES - 1, 100)


@pytest.mark.parametrize("io", IO_MODES)
def test_a_file_that_the_page_cache_holds_is_read_right(io: str, path: Path) -> None:
    assert path.read_bytes() == LABELS
    with closing(SourceFiles(io)) as files:
        for offset, nbytes in product(OFFSETS, LENGTHS):
            assert not check_read(files, path, offset, nbytes, congruent(PAGE, offset))


@pytest.mark.parametrize("io", IO_MODES)
@pytest.mark.parametrize("opened", [True, False], ids=["opened before", "opened after"])
def test_what_another_process_has_just_written_to_a_cold_file_is_read(opened: bool, io: str, path: Path) -> None:
    patch, place = b"\xff" * (PAGE + 5), DIRECT_NBYTES + 10
    data = LABELS[:place] + patch + LABELS[place + len(patch) :]
    with closing(SourceFiles(io)) as files:
        if opened:
            check_read(files, path, 100, DIRECT_NBYTES, 100)
        program = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'\\xff' * 4101, int(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", program, path, str(place)], check=True)
        for nbytes, position in product((DIRECT_NBYTES, 2 * DIRECT_NBYTES), (100, 101)):
            check_read(files, path, 100, nbytes, position, data)


# -- files that end early ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", IO_MODES)
@pytest.mark.parametrize("shift", [0, 3])
def test_a_read_beyond_the_end_says_where_the_file_ends(shift: int, io: str, path: Path) -> None:
    buffer = new_buffer(SIZE + 4 * PAGE)
    with closing(SourceFiles(io)) as files:
        for nbytes, beyond in product((5, DIRECT_NBYTES, 2 * DIRECT_NBYTES + 9), (1, 3, PAGE, 2 * PAGE + 1)):
            offset = SIZE - nbytes + beyond
            there = max(0, SIZE - offset)
            with pytest.raises(StorageError, match=f"cannot read {nbytes} bytes at {offset}: {there} are ") as caught:
                files.read_into(path, offset, buffer, congruent(0, offset) + shift, nbytes)
            assert "cut off meanwhile" in str(caught.value)
            assert str(path) in str(caught.value)


@pytest.mark.parametrize("io", IO_MODES)
@pytest.mark.parametrize("left", [0, 1, PAGE, DIRECT_NBYTES, DIRECT_NBYTES + 101, 2 * DIRECT_NBYTES + 99])
def test_a_file_that_is_cut_off_after_it_was_opened_says_so(left: int, io: str, path: Path) -> None:
    buffer = new_buffer(SIZE + 2 * PAGE)
    with closing(SourceFiles(io)) as files:
        check_read(files, path, 100, 2 * DIRECT_NBYTES, 100)
        os.truncate(path, left)
        for position in (100, 101):
            with pytest.raises(StorageError, match=f"at 100: {max(0, left - 100)} are there, all were when"):
                files.read_into(path, 100, buffer, position, 2 * DIRECT_NBYTES)
        if left > 100:
            check_read(files, path, 100, left - 100, 100, LABELS[:left])


@pytest.mark.parametrize("io", IO_MODES)
def test_an_empty_file_has_nothing_to_read(io: str, tmp_path: Path) -> None:
    with closing(SourceFiles(io)) as files:
        files.read_into(put(tmp_path / "file", b""), 0, new_buffer(1), 0, 0)
        with pytest.raises(StorageError, match=f"{DIRECT_NBYTES} bytes at 0: 0 are there"):
            files.read_into(tmp_path / "file", 0, new_buffer(DIRECT_NBYTES), 0, DIRECT_NBYTES)


# -- descriptors -------------------------------------------------------------------------------------------------------


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("io", IO_MODES)
def test_many_files_are_read_with_few_of_them_open(io: str, tmp_path: Path) -> None:
    paths = [put(tmp_path / f"{number}", bytes([number]) * 5000) for number in range(50)]
    before = count_descriptors()
    with closing(SourceFiles(io)) as files:
        for path in paths * 2:
            check_read(files, path, 1, 4999, 1, bytes([int(path.name)]) * 5000)
        assert count_descriptors() <= before + 3 * 32
    assert count_descriptors() == before


@pytest.mark.parametrize("io", IO_MODES)
def test_what_is_no_file_is_a_storage_error_and_leaves_no_descriptor(io: str, tmp_path: Path) -> None:
    before = count_descriptors()
    with closing(SourceFiles(io)) as files:
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(StorageError, match="cannot read 8 bytes at 0") as caught:
                files.read_into(path, 0, new_buffer(1), 0, 8)
            assert str(path) in str(caught.value)
    assert count_descriptors() == before


OPENS_WITH_FEW_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
from streamconv.core.errors import StorageError
from streamconv.io.direct import new_buffer
from streamconv.io.source import SourceFiles

mode, path, room = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
files, buffer, hard = SourceFiles(mode), new_buffer(1), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
lowest = os.dup(0)
os.close(lowest)
before = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, hard))
try:
    files.read_into(path, 0, buffer, 0, 8)
    print("read", end=" ")
except StorageError as error:
    print("refused", end=" ")
files.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print(len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.parametrize("io", IO_MODES)
@pytest.mark.parametrize("room", range(4))
def test_a_file_that_cannot_be_opened_leaves_no_descriptor(room: int, io: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", OPENS_WITH_FEW_DESCRIPTORS, io, str(put(tmp_path / "file")), str(room)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    word, leaked = done.stdout.split()
    assert leaked == "0", f"{word}, with {leaked} descriptors left open"
    assert word == "read" or room < 3


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="--io telepathy"):
        SourceFiles("telepathy")
