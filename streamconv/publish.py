"""Let a result grow beside its destination and appear there whole.

Everything is written below ``DST/.streamconv/`` (the same file system, also where the destination is a mount point),
synced, and renamed into place; the commit record (Megatron's tracker file) is replaced last. What is promised: after an
error or a kill the destination holds what it held before or the whole result, and what it held before is deleted only
when the result is durable. A work folder that has a journal stays when its run ends early, for the next to go on with.
What is not promised: that a disk keeps what it acknowledged. And on a file system that
cannot exchange two names in one step (NFS, Lustre), a kill between two renames leaves the old checkpoint in
``DST/.streamconv/old``, from where the next run puts it back.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from streamconv.errors import DamagedError, DestinationError, DifferenceError, DiskSpaceError
from streamconv.files.folders import exchange, sync_folder, write_text
from streamconv.files.output_io import refused_by_system
from streamconv.memory import format_bytes

__all__ = ["WORK_FOLDER", "Staging", "check_destination", "clear_leftovers", "staging"]

WORK_FOLDER, JOURNAL = ".streamconv", "journal"


def check_destination(source: Path, destination: Path, entries: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a destination that must not be written.

    Args:
        source: the checkpoint that is read.
        destination: the folder for the result; it may not exist yet.
        entries: the names that the result will have directly in it, its commit record among them.
        overwrite: whether what has these names may be replaced.

    Raises:
        DestinationError: it would change the source, is not a folder, or holds a checkpoint.
    """
    real, origin = destination.resolve(), source.resolve()
    replaced = {(real / name).resolve() for name in entries}
    # The path as given counts too: its last folder may be a link into another place.
    source_roots = {origin, origin.parent, source.absolute().parent.resolve()}
    if real in source_roots or origin in real.parents or replaced & {origin, *origin.parents}:
        raise DestinationError(
            "the destination is the source's own folder; a source is never written", where=destination
        )
    if destination.exists() and not destination.is_dir():
        raise DestinationError("the destination is not a folder", where=destination)
    if (destination / WORK_FOLDER).is_symlink():
        raise DestinationError(
            "the work folder in the destination is a link to elsewhere", where=destination / WORK_FOLDER
        )
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
        self.work = destination / WORK_FOLDER
        self.new = self.work / "new"
        self.old = self.work / "old"
        self.intent = self.work / "publishing.json"
        self.journal = self.work / JOURNAL

    @property
    def is_resumable(self) -> bool:
        """Whether a run that ended early left something to go on with."""
        return self.journal.exists() and self.new.is_dir()

    def need(self, nbytes: int) -> None:
        """Refuse a job that the disk has no room for; what is staged already counts as room.

        Raises:
            DiskSpaceError: fewer bytes are free than the result has.
        """
        staged = sum(path.stat().st_blocks * 512 for path in self.new.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.destination).free + staged
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

    def sync(self) -> None:
        """Make the names of the staged files durable."""
        for folder, _, _ in os.walk(self.new):
            sync_folder(Path(folder))

    def publish(self, texts: Mapping[str, str]) -> None:
        """Move the result into place, then replace the commit record ``texts``, each step durable before the next.

        Signals wait until it is done: a publication is whole or undone, also when it is interrupted.

        Raises:
            DiskSpaceError, StorageError: the system refused; what was there before is in place again.
        """
        with _signals_wait(), ExitStack() as undo:
            try:
                self.sync()
                for name, text in texts.items():
                    write_text(self.work / name, text)
                entries = {child.name: child.stat().st_ino for child in sorted(self.new.iterdir())}
                write_text(self.intent, json.dumps({"entries": entries, "texts": list(texts)}))
                sync_folder(self.work)
                for name in entries:
                    undo.callback(self._put(self.new / name))
                sync_folder(self.destination)
                for name in texts:
                    (self.work / name).replace(self.destination / name)
                undo.pop_all()
                sync_folder(self.destination)
                self.journal.unlink(missing_ok=True)
            except OSError as error:
                raise refused_by_system("publish the result", error, self.destination) from error

    def _put(self, child: Path) -> Callable[[], object]:
        """Move one entry into place; returns what moves it back."""
        target = self.destination / child.name
        if not os.path.lexists(target):
            child.rename(target)
            return lambda: target.rename(child)
        if exchange(child, target):
            return lambda: exchange(child, target)
        self.old.mkdir(exist_ok=True)
        aside = self.old / child.name
        target.rename(aside)
        sync_folder(self.old)
        child.rename(target)
        return lambda: (target.rename(child), aside.rename(target))

    def recover(self) -> None:
        """Undo what a run that was killed left behind, and remove its work unless it has a journal.

        If it had begun to publish and its commit record is still unwritten, what it had moved into place is moved
        out again, told by the inode that it noted before; what it had moved aside is put back. If the record is
        written, what is staged now is what was replaced: then there is nothing to go on with.
        """
        entries, texts = self._intended()
        if texts and not any((self.work / name).exists() for name in texts):
            self.journal.unlink(missing_ok=True)
        elif texts:
            for name, inode in entries.items():
                target, staged = self.destination / name, self.new / name
                is_new = target.exists() and target.stat().st_ino == inode
                if is_new and not (staged.exists() and exchange(staged, target)):
                    target.rename(staged)
        if self.old.is_dir():
            for child in self.old.iterdir():
                if not os.path.lexists(self.destination / child.name):
                    child.rename(self.destination / child.name)
        self.intent.unlink(missing_ok=True)
        shutil.rmtree(self.old, ignore_errors=True)
        if not self.journal.exists():
            shutil.rmtree(self.new, ignore_errors=True)

    def _intended(self) -> tuple[dict[str, int], list[str]]:
        """What a run had noted before it began to publish: entries with their inodes, and texts."""
        try:
            noted = json.loads(self.intent.read_text())
            names = [*noted["entries"], *noted["texts"]]
            if all(isinstance(name, str) and Path(name).name == name for name in names):
                return dict(noted["entries"]), list(noted["texts"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # killed before or while it was written: nothing had been moved yet
        return {}, []

    def begin_anew(self) -> None:
        """Discard what is staged, and its journal."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()

    def leave(self) -> None:
        """Undo what is half published, and remove the work folder unless it has a journal."""
        self.recover()
        if not self.journal.exists():
            shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def staging(destination: Path) -> Iterator[Staging]:
    """A locked work folder in ``destination``: empty, or with what a run that has a journal left there.

    At the end it is removed, unless a journal is in it and the source is not to blame.

    Raises:
        DestinationError: another run holds the lock.
        DiskSpaceError, StorageError: the folder cannot be made.
    """
    made = [folder for folder in (destination, *destination.parents) if not folder.exists()]
    stage = Staging(destination)
    with ExitStack() as cleanup:
        try:
            stage.work.mkdir(parents=True, exist_ok=True)
            for folder in reversed(made):
                cleanup.callback(_remove_if_empty, folder)
            cleanup.callback(os.close, _lock(stage.work / "lock", destination))
            cleanup.callback(stage.leave)
            stage.recover()
            stage.new.mkdir(exist_ok=True)
        except OSError as error:
            raise refused_by_system("write there", error, destination) from error
        try:
            yield stage
        except (DamagedError, DifferenceError):
            stage.journal.unlink(missing_ok=True)
            raise


def clear_leftovers(destination: Path) -> None:
    """Undo what a killed run left half published, so that the next looks at what was there before it.

    Raises:
        DestinationError: another run is writing there.
        StorageError: the system refused.
    """
    work = destination / WORK_FOLDER
    if work.is_dir() and not work.is_symlink():
        with staging(destination):
            pass


@contextmanager
def _signals_wait() -> Iterator[None]:
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def _lock(path: Path, destination: Path) -> int:
    """Lock the work folder; returns the descriptor that holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run that held it may have removed the file in between: then this is no longer the lock.
        held = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    except BlockingIOError:
        held = False
    if not held:
        os.close(descriptor)
        raise DestinationError("another conversion is writing there", where=destination, remedy="wait until it ends")
    return descriptor


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
