"""What two threads write in any order is what the file holds, byte for byte, on whichever way each byte went.

A long part goes directly to the disk and its two ends through the page cache, so neighbours meet in one page on
different ways. Every byte is compared twice: as the page cache shows it, and as the disk has it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Event, Thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv.core.errors import StorageError
from streamconv.io.direct import DIRECT_NBYTES, PAGE, congruent, new_buffer, open_file
from streamconv.io.output import DiscardedOutput, OutputFileWriter
from tests.places import ROOT

pytestmark = pytest.mark.disk

LABELS = np.arange(1, 1 + DIRECT_NBYTES * 5, dtype=np.uint32).tobytes()
SCRIBBLE = b"\xee"
Part = tuple[int, int, int]
"""First and last byte of the file, and by how much its position in the buffer is out of place."""


@pytest.fixture(params=["disk", "shm"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk, and one in memory."""
    if request.param == "disk":
        yield tmp_path
        return
    if not Path("/dev/shm").is_dir():  # noqa: S108 - a file system in memory, where there is one
        pytest.skip("no /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def as_cached(path: Path) -> bytes:
    return path.read_bytes()


def as_on_disk(path: Path) -> bytes:
    """The file's bytes without the page cache, where the file system can."""
    nbytes = path.stat().st_size
    buffer = new_buffer(nbytes + PAGE)
    fd, _ = open_file(path, os.O_RDONLY, direct=True)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        done = 0
        while done < nbytes:
            # A direct read ends on a page or at the end of the file, so the next begins on a page.
            done += os.preadv(fd, [memoryview(buffer)[done:]], done)
        return buffer[:nbytes]
    finally:
        os.close(fd)


def assert_holds(path: Path, expected: bytes) -> None:
    for found in (as_cached(path), as_on_disk(path)):
        assert len(found) == len(expected)
        if found != expected:
            wrong = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(expected, np.uint8))
            raise AssertionError(f"{len(wrong)} bytes are wrong, from {wrong[0]} to {wrong[-1]}")


def write_part(writer: OutputFileWriter, part: Part, data: bytes = LABELS) -> None:
    """Write from a buffer that is full of other bytes before and after."""
    first, last, shift = part
    position = congruent(PAGE, first) + shift
    buffer = new_buffer(position + last - first + 2 * PAGE)
    buffer[:] = SCRIBBLE * len(buffer)
    buffer[position : position + last - first] = data[first:last]
    writer.write(first, buffer, position, last - first)
    buffer[:] = SCRIBBLE * len(buffer)


def write_by_threads(writer: OutputFileWriter, parts: Sequence[Part], count: int = 2, *, commits: bool = False) -> None:
    """All parts by threads that start at once; ``commits`` makes durable what is written, again and again meanwhile."""
    shares = [parts[number::count] for number in range(count)]
    barrier, ended = Barrier(count), Event()

    def work(share: Sequence[Part]) -> None:
        barrier.wait()
        for part in share:
            write_part(writer, part)

    def commit() -> None:
        while not ended.wait(0.001):
            writer.commit()

    committer = Thread(target=commit)
    if commits:
        committer.start()
    try:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(work, shares))
    finally:
        ended.set()
        if commits:
            committer.join()


LENGTHS = st.one_of(
    st.integers(1, 3 * PAGE),
    st.integers(DIRECT_NBYTES - PAGE, DIRECT_NBYTES + 3 * PAGE),
    st.sampled_from([PAGE, DIRECT_NBYTES - 1, DIRECT_NBYTES, DIRECT_NBYTES + 1, 2 * DIRECT_NBYTES, 300_001]),
)
SHIFTS = st.sampled_from([0, 0, 0, 1, 64, PAGE - 1])


@st.composite
def cut_files(draw: st.DrawFn) -> list[Part]:
    """All parts of a file, in the order in which they are to be written."""
    bounds = [0]
    for length in draw(st.lists(LENGTHS, min_size=1, max_size=12)):
        if bounds[-1] + length <= len(LABELS):
            bounds.append(bounds[-1] + length)
    parts = [(first, last, draw(SHIFTS)) for first, last in pairwise(bounds)]
    return draw(st.permutations(parts))


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=cut_files(),
    io=st.sampled_from(["direct", "direct", "pread"]),
    window=st.sampled_from([1, 4 * PAGE, 200_000, 1 << 30]),
    commits=st.booleans(),
)
def test_adjoining_parts_in_any_order_by_two_threads_make_the_file(
    parts: list[Part], io: str, window: int, commits: bool, folder: Path
) -> None:
    path, nbytes = folder / "file", max(last for _, last, _ in parts)
    path.unlink(missing_ok=True)
    writer = OutputFileWriter(path, nbytes, window, io)
    wanted = writer.wants_pages
    with closing(writer):
        write_by_threads(writer, parts, commits=commits)
        assert writer.wants_pages == wanted, "the file system refused what should have been aligned"
        assert as_cached(path) == LABELS[:nbytes]
        writer.finish()
    assert_holds(path, LABELS[:nbytes])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("count", [2, 4])
def test_long_and_short_parts_that_share_every_page_at_their_ends(count: int, seed: int, folder: Path) -> None:
    """Each boundary lies inside a page, and threads are at both its sides at once."""
    rng = random.Random(seed)
    bounds = [0]
    while bounds[-1] < len(LABELS):
        length = rng.choice([rng.randint(1, PAGE), DIRECT_NBYTES + rng.randint(1, 2 * PAGE), rng.randint(1, 64)])
        bounds.append(min(len(LABELS), bounds[-1] + length))
    parts = [(first, last, rng.choice([0, 0, 0, 5])) for first, last in pairwise(bounds)]
    if seed % 3 == 0:
        rng.shuffle(parts)
    writer = OutputFileWriter(folder / "file", len(LABELS), 64 << 10)
    write_by_threads(writer, parts, count, commits=seed % 2 == 0)
    writer.finish()
    assert_holds(folder / "file", LABELS)


@pytest.mark.parametrize("start", [0, 1, 100, PAGE - 1, PAGE, PAGE + 1])
@pytest.mark.parametrize("length", [1, DIRECT_NBYTES - 1, DIRECT_NBYTES, DIRECT_NBYTES + 1, DIRECT_NBYTES + 2 * PAGE])
def test_a_part_leaves_what_is_around_it_alone(start: int, length: int, folder: Path) -> None:
    nbytes = start + length + 2 * PAGE + 3
    around = bytes([0x55]) * nbytes
    for shift in (0, 7):
        path = folder / f"file{shift}"
        with closing(OutputFileWriter(path, nbytes, 4096)) as writer:
            writer.write(0, around, 0, nbytes)
            writer.commit()
            write_part(writer, (start, start + length, shift))
            writer.finish()
        assert_holds(path, around[:start] + LABELS[start : start + length] + around[start + length :])


def test_the_last_page_of_a_file_is_written_to_its_last_byte_and_no_further(folder: Path) -> None:
    for nbytes in (DIRECT_NBYTES, DIRECT_NBYTES + 1, DIRECT_NBYTES + PAGE - 1, 2 * DIRECT_NBYTES + 100):
        path = folder / f"{nbytes}"
        with closing(OutputFileWriter(path, nbytes, 4096)) as writer:
            write_part(writer, (0, nbytes, 0))
            writer.finish()
        assert_holds(path, LABELS[:nbytes])


def test_pages_are_wanted_only_where_they_are_written_directly(tmp_path: Path) -> None:
    for io in ("direct", "pread"):
        with closing(OutputFileWriter(tmp_path / io, PAGE, 4096, io)) as writer:
            fd, can = open_file(tmp_path / io, os.O_RDWR, direct=True)
            os.close(fd)
            assert writer.wants_pages == (can and io == "direct")


# -- durable -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_making_it_durable_changes_no_byte(io: str, folder: Path) -> None:
    parts = [(n * 70_001, min(len(LABELS), (n + 1) * 70_001), n % 2) for n in range(-(-len(LABELS) // 70_001))]
    expected = bytearray(len(LABELS))
    with closing(OutputFileWriter(folder / "file", len(LABELS), 32 << 10, io)) as writer:
        for part in parts:
            writer.commit()
            write_part(writer, part)
            expected[part[0] : part[1]] = LABELS[part[0] : part[1]]
            writer.commit()
            writer.commit()
            assert as_on_disk(folder / "file") == bytes(expected)
        writer.finish()
    assert_holds(folder / "file", LABELS)


@pytest.mark.parametrize("io", ["direct", "pread"])
@pytest.mark.parametrize("nbytes", [0, 1, PAGE, 3 * PAGE + 5, 10_000_001])
def test_reserved_room_keeps_the_size_and_reads_as_zeros(nbytes: int, io: str, folder: Path) -> None:
    with closing(OutputFileWriter(folder / "file", nbytes, 4096, io)):
        found = (folder / "file").stat()
        assert found.st_size == nbytes
        assert found.st_blocks * 512 >= nbytes, "this file system reserves nothing, or the call was not made"
        assert_holds(folder / "file", bytes(nbytes))


# -- going on ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=cut_files(), stop=st.integers(0, 12), before=st.sampled_from(["direct", "pread"]))
def test_a_file_that_is_gone_on_with_keeps_what_is_there(
    parts: list[Part], stop: int, before: str, folder: Path
) -> None:
    path, nbytes = folder / "file", max(last for _, last, _ in parts)
    path.unlink(missing_ok=True)
    with closing(OutputFileWriter(path, nbytes, 4096, before)) as writer:
        write_by_threads(writer, parts[:stop])
        writer.commit()
    done = as_cached(path)
    with closing(OutputFileWriter(path, nbytes, 4096, "direct", resume=True)) as writer:
        assert as_cached(path) == done
        write_by_threads(writer, parts[stop:])
        writer.finish()
    assert_holds(path, LABELS[:nbytes])


@pytest.mark.parametrize("before", [None, 3, 10, 12])
def test_going_on_with_a_file_that_is_not_there_or_of_another_size_makes_it_so(
    before: int | None, tmp_path: Path
) -> None:
    if before is not None:
        (tmp_path / "file").write_bytes(bytes([7]) * before)
    with closing(OutputFileWriter(tmp_path / "file", 10, 4096, resume=True)) as writer:
        writer.write(8, b"ab", 0, 2)
        writer.finish()
    assert (tmp_path / "file").read_bytes() == (bytes([7]) * (before or 0) + bytes(10))[:8] + b"ab"


@pytest.mark.parametrize("resume", [False, True])
def test_a_link_is_not_followed(resume: bool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"cannot (open|create) the file"):
        OutputFileWriter(tmp_path / "file", 10, 4096, resume=resume)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


# -- descriptors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_a_file_that_cannot_be_made_leaves_no_descriptor(io: str, folder: Path) -> None:
    (folder / "there").write_text("precious")
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(StorageError, match="cannot create"):
        OutputFileWriter(folder / "there", 10, 4096, io)
    with pytest.raises(StorageError, match="cannot create"):
        OutputFileWriter(folder / "nowhere" / "file", 10, 4096, io)
    with pytest.raises(StorageError, match="cannot open"):
        OutputFileWriter(folder, 10, 4096, io, resume=True)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    assert (folder / "there").read_text() == "precious"


MAKES_A_FILE_THAT_IS_TOO_LONG = """
import resource, sys
from pathlib import Path
from streamconv.core.errors import StorageError
from streamconv.io.output import OutputFileWriter

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
before = sorted(Path("/proc/self/fd").iterdir())
try:
    OutputFileWriter(Path(sys.argv[1]), 2 << 20, 4096, sys.argv[2])
except StorageError as error:
    print(str(error).splitlines()[0])
assert sorted(Path("/proc/self/fd").iterdir()) == before
"""


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_a_file_whose_room_is_refused_leaves_no_descriptor(io: str, folder: Path) -> None:
    words = [sys.executable, "-c", MAKES_A_FILE_THAT_IS_TOO_LONG, str(folder / "file"), io]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "cannot create the file: File too large\n"), done.stderr


@pytest.mark.parametrize("io", ["direct", "pread"])
@pytest.mark.parametrize("ends", ["finish", "close"])
def test_a_file_that_is_done_leaves_no_descriptor(ends: str, io: str, tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    writer = OutputFileWriter(tmp_path / "file", 10, 4096, io)
    getattr(writer, ends)()
    writer.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_discarded_output_takes_everything_and_keeps_nothing() -> None:
    output = DiscardedOutput()
    assert output.wants_pages
    output.write(1 << 60, b"bytes", 0, 5)
    output.commit()
