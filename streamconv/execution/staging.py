"""Write a result into a work folder in its destination, and publish it whole.

Everything is written below ``DST/.streamconv/`` (on the same file system, even if the destination is a mount point),
synced, and renamed into place. Other files of an older checkpoint are moved aside. The commit record (Megatron's
tracker file, a config.json) is replaced last. That one step decides: before it everything can be undone, after it the
result is whole. After an error or a kill the destination holds its old content or the whole result, at the latest when
the next run has cleared up there. The old content is deleted only when the result is durable. If a run ends early, a
work folder with a journal stays, so that the next run can resume. It is not promised that a disk keeps what it
acknowledged. And where the file system cannot exchange two names in one step (NFS, Lustre), a kill between two renames
leaves the old checkpoint in ``DST/.streamconv/old``, from where the next run puts it back.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from streamconv.core.errors import DamagedError, DifferenceError, DiskSpaceError
from streamconv.core.signals import signals_blocked
from streamconv.execution.destination import WORK_FOLDER, check_destination, lock_destination
from streamconv.io.durable import exchange, sync_folder, write_text
from streamconv.io.refusals import refused_by_system
from streamconv.io.whole_file import copy_file, write_file
from streamconv.memory.budget import format_bytes

__all__ = ["WORK_FOLDER", "Staging", "check_destination", "clear_leftovers", "staging"]

JOURNAL = "journal"


class Staging:
    """The work folder in which a result is staged."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.work = destination / WORK_FOLDER
        self.new = self.work / "new"
        self.old = self.work / "old"
        self.intent = self.work / "publishing.json"
        self.journal = self.work / JOURNAL

    @property
    def is_resumable(self) -> bool:
        """Whether an earlier run left a journal and files to resume from."""
        return self.journal.exists() and self.new.is_dir()

    def need(self, nbytes: int) -> None:
        """Check that the disk has room for a result of ``nbytes``; staged files count as free space.

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
        """The staged path of the result's file ``name``; its folders are made."""
        path = self.new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sync(self) -> None:
        """Make the names of the staged files durable."""
        for folder, _, _ in os.walk(self.new):
            sync_folder(Path(folder))

    def text(self, name: str, text: str | bytes) -> None:
        """Stage a small text, or bytes, as the file ``name`` of the result, in place of what is staged there.

        Raises:
            DiskSpaceError, StorageError: the system refused.
        """
        data = text.encode() if isinstance(text, str) else text
        write_file(self.new / name, len(data), [data])

    def copy(self, name: str, origin: Path) -> None:
        """Stage a copy of a file as the file ``name`` of the result, replacing a staged file of that name.

        Raises:
            SourceError: ``origin`` is not a regular file, nor a link to one.
            DamagedError: ``origin`` was changed while it was copied.
            DiskSpaceError, StorageError: the system refused.
        """
        copy_file(origin, self.new / name)

    def publish(self, texts: Mapping[str, str], retire: Iterable[str] = ()) -> None:
        """Move the result into place and ``retire`` aside, then replace the commit record: the last of ``texts``.

        The other texts are staged and moved into place with the result. Signals are blocked until it is done, so that
        a publication is whole or undone even if it is interrupted.

        Args:
            texts: at least one small file by its name in the destination.
            retire: names in the destination that belong to an older checkpoint, deleted when the result is durable;
                names that are missing or replaced are left out.

        Raises:
            DiskSpaceError, StorageError: the system refused; what was there before is in place again.
        """
        *before, record = texts
        retired = sorted(set(retire) - set(texts))
        if not all(_is_name(name) for name in retired):
            raise ValueError(f"not names in the destination: {retired}")
        try:
            with signals_blocked(), ExitStack() as undo:
                for name in before:
                    self.text(name, texts[name])
                self.sync()
                self.old.mkdir(exist_ok=True)
                write_text(self.work / record, texts[record])
                # The record is in the work folder until it is published, and the intent is never there without it.
                sync_folder(self.work)
                names = sorted({child.name for child in self.new.iterdir()} - set(before)) + before
                entries = {name: (self.new / name).lstat().st_ino for name in names}
                retired = [name for name in retired if name not in entries]
                write_text(self.intent, json.dumps({"entries": entries, "retired": retired, "texts": list(texts)}))
                sync_folder(self.work)
                for name in entries:
                    self._put(name, undo)
                for name in retired:
                    if os.path.lexists(self.destination / name):
                        self._set_aside(name, undo)
                sync_folder(self.old)
                sync_folder(self.destination)
                (self.work / record).replace(self.destination / record)
                undo.pop_all()
                sync_folder(self.destination)
                self.journal.unlink(missing_ok=True)
        except OSError as error:
            raise refused_by_system("publish the result", error, self.destination) from error

    def _put(self, name: str, undo: ExitStack) -> None:
        """Move a staged entry into place."""
        staged, target = self.new / name, self.destination / name
        if os.path.lexists(target):
            if exchange(staged, target):
                undo.callback(exchange, staged, target)
                return
            self._set_aside(name, undo)
        staged.rename(target)
        undo.callback(target.rename, staged)

    def _set_aside(self, name: str, undo: ExitStack) -> None:
        target, aside = self.destination / name, self.old / name
        target.rename(aside)
        undo.callback(aside.rename, target)

    def recover(self) -> None:
        """Undo what a killed run left behind, and delete its staged files unless it has a journal.

        If it had begun to publish and had not replaced the commit record, entries that it had moved into place are
        moved out again (recognised by the inodes that it recorded), and entries that it had moved aside are put back.
        If the record is replaced, the entries that are staged or aside now are the old ones: they are deleted, and
        there is nothing to resume. The intent is removed only after all that, so that a kill here loses nothing.
        """
        for folder in self.work.glob("replaced-*"):
            shutil.rmtree(folder, ignore_errors=True)
        entries, record = self._intended()
        if record and not (self.work / record).exists():
            sync_folder(self.destination)
            self.journal.unlink(missing_ok=True)
            self._discard(self.old)
            self._discard(self.new)
        else:
            for name, inode in reversed(entries.items()):
                self._take_out(name, inode)
            for aside in sorted(self.old.iterdir()) if self.old.is_dir() else ():
                if not os.path.lexists(self.destination / aside.name):
                    aside.rename(self.destination / aside.name)
            sync_folder(self.destination)
        self.intent.unlink(missing_ok=True)
        sync_folder(self.work)
        self._discard(self.old)
        if not self.journal.exists():
            self._discard(self.new)

    def _take_out(self, name: str, inode: int) -> None:
        """Move an entry back to where it was staged, and the entry that it was exchanged with back into place."""
        staged, target = self.new / name, self.destination / name
        if not os.path.lexists(target) or target.lstat().st_ino != inode:
            return
        if os.path.lexists(staged):
            if exchange(staged, target):
                return
            self.old.mkdir(exist_ok=True)
            staged.rename(self.old / name)
        target.rename(staged)

    def _discard(self, folder: Path) -> None:
        """Delete a folder. What cannot be deleted (an open file on NFS) is moved aside, so that no later run takes it
        for an old or a new checkpoint.
        """
        shutil.rmtree(folder, ignore_errors=True)
        if folder.is_dir():
            folder.rename(Path(tempfile.mkdtemp(prefix="replaced-", dir=self.work)) / folder.name)

    def _intended(self) -> tuple[dict[str, int], str]:
        """The intent of a run that began to publish: its entries with their inodes, and its commit record."""
        try:
            noted = json.loads(self.intent.read_text())
            entries, texts = dict(noted["entries"]), list(noted["texts"])
            if all(isinstance(name, str) and _is_name(name) for name in (*entries, *texts)):
                return entries, texts[-1]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            pass  # killed before or while it was written: nothing had been moved yet
        return {}, ""

    def begin_anew(self) -> None:
        """Discard the staged files and their journal."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()

    def leave(self) -> None:
        """Undo a half-done publication, and remove the work folder unless it has a journal. Signals wait for that.

        Raises:
            DiskSpaceError, StorageError: the system refused; the next run tries again.
        """
        with signals_blocked():
            try:
                self.recover()
            except OSError as error:
                raise refused_by_system("clear up there", error, self.destination) from error
            if not self.journal.exists():
                shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def staging(destination: Path) -> Iterator[Staging]:
    """A locked work folder in ``destination``: empty, or with the staged files and the journal of an earlier run.

    It is removed at the end unless it has a journal. A damaged source or a difference in values deletes the journal.

    Raises:
        DestinationError: another run holds the lock.
        DiskSpaceError, StorageError: the system refused to make the folder, or something in it.
    """
    made = [folder for folder in (destination, *destination.parents) if not folder.exists()]
    stage = Staging(destination)
    with ExitStack() as cleanup:
        try:
            stage.work.mkdir(parents=True, exist_ok=True)
            for folder in reversed(made):
                cleanup.callback(_remove_if_empty, folder)
            cleanup.callback(os.close, lock_destination(stage.work / "lock", destination))
            cleanup.callback(stage.leave)
            stage.recover()
            stage.new.mkdir(exist_ok=True)
        except OSError as error:
            raise refused_by_system("write there", error, destination) from error
        try:
            yield stage
        except OSError as error:
            raise refused_by_system("write there", error, destination) from error
        except (DamagedError, DifferenceError):
            stage.journal.unlink(missing_ok=True)
            raise


def clear_leftovers(destination: Path) -> None:
    """Undo the half-done publication of a killed run, so that the next run finds the old content.

    Raises:
        DestinationError: another run is writing there.
        StorageError: the system refused.
    """
    work = destination / WORK_FOLDER
    if work.is_dir() and not work.is_symlink():
        with staging(destination):
            pass


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _is_name(name: str) -> bool:
    """Whether ``name`` is the name of an entry directly in a folder, not a path."""
    return Path(name).name == name and name not in ("", "..")
