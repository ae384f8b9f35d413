"""A volume that promises more than it has: what is written late is lost, and only a sync says so.

It is ext4 on a loop device whose file is in a tmpfs that is too small, as a thin volume is. A run must fail there; when
the volume has room, the same command ends with the right bytes, whatever had been lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.processes import STREAMCONV, start
from tests.small_disk import small_disk
from tests.spread import Sweep
from tests.trees import tree

pytestmark = [pytest.mark.disk, pytest.mark.slow]

MIB = 1 << 20
VOLUME = 120 * MIB
# 28 MB of weights, so that none of these holds them all. The file system's own tables take less than one.
ROOM = tuple(kilobytes * 1024 for kilobytes in range(3000, 26000, 750))
MAKE = ("--layers", "4", "--hidden", "512", "--heads", "8", "--vocab", "2048", "--tp", "2", "--pp", "2")


@dataclass(frozen=True)
class ThinVolume:
    """A file system in ``folder``, and the small one in ``below`` that holds it."""

    folder: Path
    below: Path

    def give_room(self) -> None:
        mount("-o", f"remount,size={VOLUME + MIB}", self.below)

    def evict(self) -> None:
        """Read from the volume from now on, not from what the page cache has kept of it."""
        os.sync()
        for path in self.folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


@contextmanager
def thin_volume(folder: Path, room: int) -> Iterator[ThinVolume]:
    """A volume that has ``room`` bytes and says that it has 120 MiB; skips the test where there can be none."""
    folder.mkdir()
    with small_disk(folder / "below", room) as below:
        image, shown = below / "image", folder / "shown"
        shown.mkdir()
        image.touch()
        os.truncate(image, VOLUME)
        try:
            options = ["-q", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"]
            subprocess.run(["mkfs.ext4", *options, image], check=True, capture_output=True)
            mount("-o", "loop,errors=continue", image, shown)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs ext4 on a loop device: {error}")
        try:
            yield ThinVolume(shown, below)
        finally:
            subprocess.run(["umount", shown], check=True)  # which lets go of the loop device too


@pytest.fixture(scope="module")
def source(disk: Path) -> Path:
    folder = disk / "weights"
    words = [sys.executable, str(ROOT / "benchmarks" / "make_checkpoint.py"), str(folder), *MAKE]
    subprocess.run(words, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, disk: Path) -> dict[str, bytes]:
    out = disk / "weights-converted"
    assert convert(source, out, "pread") == 0
    return tree(out)


def convert(source: Path, out: Path, io: str) -> int:
    """Convert with little memory, so that little waits to be written; returns the exit code.

    One thread writes: when it hears of a loss, no other has more to lose, and the next sync of the file succeeds.
    """
    words = ("--to", "megatron-legacy", "--tp", 1, "--pp", 1, "--max-ram", "60M", "--io", io, "--engine", "serial")
    return start(STREAMCONV, source, out, *words).returncode


@pytest.mark.parametrize("io", ["pread", "direct"])
def test_what_a_volume_lost_is_written_again(
    io: str, source: Path, expected: dict[str, bytes], sweep: Sweep, tmp_path: Path
) -> None:
    for room in sweep.of(ROOM, 10):
        with thin_volume(tmp_path / f"{room}", room) as volume:
            out = volume.folder / "out"
            assert convert(source, out, io) in (4, 5)
            assert not (out / "latest_checkpointed_iteration.txt").exists()
            volume.give_room()
            volume.evict()
            assert convert(source, out, io) == 0
            volume.evict()
            assert tree(out) == expected, f"{room} bytes of room"
