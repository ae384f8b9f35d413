"""Let a result grow beside its destination and appear there whole.

Everything is written below ``DST/.streamconv/`` (the same file system, also where the destination is a mount point),
synced, and renamed into place; the commit record (Megatron's tracker file) is replaced last. What is promised: after
a crash or a kill the destination holds either what it held before or the whole result, and never a commit record
without its files. What is not promised: that a disk keeps what it acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from streamconv.errors import DestinationError, DiskSpaceError, StorageError
from streamconv.memory import format_bytes

__all__ = ["Staging", "check_destination", "staging"]

_WORK = ".streamconv"


def check_destination(source: Path, destination: Path, entries: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a destination that must not be written.

    Args:
        source: the checkpoint that is read.
        destination: the folder for the result; it may not exist yet.
        entries: the names that the result will have directly in it, its commit record among them.
        overwrite: whether what has these names may be replaced.

    Raises:
        DestinationError: it is the source, is in the source, is not a folder, or holds a checkpoint.
    """
    real, origin = destination.resolve(), source.resolve()
    if real == origin or origin in real.parents or real == origin.parent:
        raise DestinationError(
            "the destination is the source's own folder; a source is never written", where=destination
        )
    if destination.exists() and not destination.is_dir():
        raise DestinationError("the destination is not a folder", where=destination)
    present = sorted(child.name for child in destination.iterdir()) if destination.is_dir() else []
    taken = [name for name in present if name in entries or name.startswith("iter_") or name == "release"]
    if taken and not overwrite:
        raise DestinationError(
            f"the destination holds a checkpoint: {', '.join(taken[:4])}",
            where=destination,
            remedy="choose another folder, or --overwrite to replace it (it stays until the new one is durable)",
        )


class Staging:
    """The folder that a result grows in."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.work = destination / _WORK
        self.new = self.work / "new"
        self.old = self.work / "old"

    def need(self, nbytes: int) -> None:
        """Refuse a job that the disk has no room for.

        Raises:
            DiskSpaceError: fewer bytes are free than the result has.
        """
        free = shutil.disk_usage(self.destination).free
        if free < nbytes:
            raise DiskSpaceError(
                f"the result has {format_bytes(nbytes)}, the disk has {format_bytes(free)} free",
                where=self.destination,
                remedy=f"free {format_bytes(nbytes - free)}, or choose another disk",
            )

    def path(self, name: str) -> Path:
        """Where the file ``name`` of the result grows; its folders are made."""
        path = self.new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, texts: Mapping[str, str]) -> None:
        """Move the result into place, then write the commit record ``texts``, each step durable before the next.

        Raises:
            StorageError: the system refused; what was there before is in place again.
        """
        for folder, _, _ in os.walk(self.new):
            _sync_folder(Path(folder))
        for child in sorted(self.new.iterdir()):
            target = self.destination / child.name
            if target.exists():
                self.old.mkdir(exist_ok=True)
                target.rename(self.old / child.name)
                _sync_folder(self.old)
            child.rename(target)
            _sync_folder(self.destination)
        for name, text in texts.items():
            _replace_text(self.work / name, self.destination / name, text)

    def recover(self) -> None:
        """Undo what a killed run left: put back what it had moved aside but not replaced, and remove its work."""
        if self.old.is_dir():
            for child in self.old.iterdir():
                if not (self.destination / child.name).exists():
                    child.rename(self.destination / child.name)
            _sync_folder(self.destination)
        for folder in (self.new, self.old):
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def staging(destination: Path) -> Iterator[Staging]:
    """A locked, empty work folder in ``destination``, removed at the end whatever happens.

    Raises:
        DestinationError: another run holds the lock.
        StorageError: the folder cannot be made.
    """
    made = not destination.exists()
    stage = Staging(destination)
    lock = -1
    try:
        stage.work.mkdir(parents=True, exist_ok=True)
        lock = os.open(stage.work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stage.recover()
        stage.new.mkdir()
    except BlockingIOError as error:
        os.close(lock)
        raise DestinationError(
            "another conversion is writing there", where=destination, remedy="wait until it ends"
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (DiskSpaceError if full else StorageError)(
            f"cannot write there: {error.strerror}", where=destination
        ) from error
    try:
        yield stage
    finally:
        stage.recover()
        stage.remove()
        os.close(lock)
        if made and not any(destination.iterdir()):
            destination.rmdir()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_text(temporary: Path, target: Path, text: str) -> None:
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    _sync_folder(target.parent)
