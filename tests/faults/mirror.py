"""A file system that shows a folder at another place (FUSE). Its ``flock`` holds within one mount alone.

    python -m tests.faults.mirror FOLDER MOUNT [TROUBLE]

Two mirrors of one folder stand for two hosts that share a disk whose locks are local to each host, as with NFS and
``nolock``. The file TROUBLE, while it is there, says what goes wrong with the reads of one file: ``{"name": "a.pt",
"at": 4096, "how": "error"}``. The first read that takes in the byte ``at`` begins it; from then on every read from
there fails (``error``), gives half of what was asked for (``short``), or finds the end of the file (``end``).
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT

_STATUS = ("mode", "nlink", "size", "uid", "gid", "ino", "blocks", "mtime_ns", "atime_ns", "ctime_ns")
_SPACE = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax")
# What one mount has changed, the other sees at once: nothing is remembered. A read asks for a few pages, none ahead.
_OPTIONS = {"attr_timeout": 0, "entry_timeout": 0, "max_read": 1 << 14, "max_readahead": 0, "use_ino": True}


@contextmanager
def mirrored(folder: Path, mount: Path, trouble: Path | None = None) -> Iterator[Path]:
    """A mount of a mirror of ``folder``; skips the test where there can be none."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse, to mount a mirror")
    try:
        import mfusepy  # noqa: F401 - the process that serves the mirror needs it
    except (ImportError, OSError) as error:
        pytest.skip(f"needs mfusepy and libfuse: {error}")
    mount.mkdir()
    words = [sys.executable, "-m", __name__, str(folder), str(mount), *([] if trouble is None else [str(trouble)])]
    server = subprocess.Popen(words, cwd=ROOT)
    try:
        while not mount.is_mount():
            if server.poll() is not None:
                pytest.skip(f"cannot mount a mirror: its process ended with {server.returncode}")
            time.sleep(0.01)
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        server.wait(timeout=30)


class Trouble:
    """What goes wrong with reads, as a file says at the moment."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.begun = False

    def read(self, name: str, file: int, nbytes: int, offset: int) -> bytes:
        """Read, if that goes well.

        Raises:
            OSError: it does not.
        """
        noted = self._noted()
        at = noted.get("at", 0)
        data = os.pread(file, nbytes, offset)
        if not noted or not name.endswith(noted["name"]) or offset + len(data) <= at:
            return data
        self.begun |= offset <= at
        if not self.begun:
            return data
        if noted["how"] == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data[: max(0, at - offset)] if noted["how"] == "end" else data[: -(-len(data) // 2)]

    def _noted(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text()) if self.path else {}
        except FileNotFoundError:
            self.begun = False
            return {}


class Mirror:
    """The calls of a file system, each the system's own on a path below ``folder``; there is no ``flock``."""

    use_ns = True

    def __init__(self, folder: Path, trouble: Trouble) -> None:
        self.folder = folder
        self.trouble = trouble

    def _real(self, path: str) -> Path:
        return Path(f"{self.folder}{path}")

    def getattr(self, path: str, file: int | None = None) -> dict[str, int]:
        status = self._real(path).lstat() if file is None else os.fstat(file)
        return {f"st_{name.removesuffix('_ns')}": getattr(status, f"st_{name}") for name in _STATUS}

    def readdir(self, path: str, _: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """Names with their numbers: one with the number 0 would count as deleted."""
        yield from ((name, {"st_ino": self._real(path).stat().st_ino}, 0) for name in (".", ".."))
        with os.scandir(self._real(path)) as entries:
            yield from ((entry.name, {"st_ino": entry.inode()}, 0) for entry in entries)

    def readlink(self, path: str) -> str:
        return str(self._real(path).readlink())

    def symlink(self, path: str, target: str) -> None:
        self._real(path).symlink_to(target)

    def mkdir(self, path: str, mode: int) -> None:
        self._real(path).mkdir(mode)

    def rmdir(self, path: str) -> None:
        self._real(path).rmdir()

    def unlink(self, path: str) -> None:
        self._real(path).unlink()

    def rename(self, old: str, new: str) -> None:
        self._real(old).rename(self._real(new))

    def chmod(self, path: str, mode: int) -> None:
        self._real(path).chmod(mode)

    def utimens(self, path: str, times: tuple[int, int]) -> None:
        os.utime(self._real(path), ns=times)

    def statfs(self, path: str) -> dict[str, int]:
        space = os.statvfs(self._real(path))
        return {f"f_{name}": getattr(space, f"f_{name}") for name in _SPACE}

    def create(self, path: str, mode: int, flags: int) -> int:
        return os.open(self._real(path), self._flags(flags) | os.O_CREAT, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), self._flags(flags))

    @staticmethod
    def _flags(flags: int) -> int:
        """What one asks of an open, but that the bytes come from here: no direct transfers, any offset."""
        return flags & ~(os.O_DIRECT | os.O_APPEND)

    def read(self, path: str, nbytes: int, offset: int, file: int) -> bytes:
        return self.trouble.read(path, file, nbytes, offset)

    def write(self, _: str, data: bytes, offset: int, file: int) -> int:
        return os.pwrite(file, data, offset)

    def truncate(self, path: str, nbytes: int, file: int | None = None) -> None:
        os.truncate(self._real(path) if file is None else file, nbytes)

    def fsync(self, _: str, data_alone: int, file: int) -> None:
        (os.fdatasync if data_alone else os.fsync)(file)

    def release(self, _: str, file: int) -> None:
        os.close(file)


def main(folder: str, mount: str, *trouble: str) -> None:
    import mfusepy

    mirror = Mirror(Path(folder), Trouble(Path(*trouble) if trouble else None))
    mfusepy.FUSE(mirror, mount, foreground=True, nothreads=True, **_OPTIONS)


if __name__ == "__main__":
    main(*sys.argv[1:])
