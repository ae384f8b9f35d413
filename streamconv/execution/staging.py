"""Write a result into a work folder in its destination, and publish it whole.

Everything is written below ``DST/.streamconv/`` (on the same file system, even if the destination is a mount point),
synced, and moved into place by :mod:`streamconv.execution.publication`. After an error or a kill the destination holds
its old content or the whole result, at the latest when the next run has cleared up there. The old content is deleted
only when the result is durable. If a run ends early, a work folder with a journal stays, and the next run goes on.
What is promised and what is not: docs/reliability.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from streamconv.core.errors import DamagedError, DifferenceError, DiskSpaceError
from streamconv.core.signals import signals_held
from streamconv.core.work_folder import JOURNAL, WORK_FOLDER
from streamconv.execution.ownership import Ownership, is_of_owner
from streamconv.execution.publication import Publication
from streamconv.io.durable import sync_folder
from streamconv.io.refusals import refused_by_system
from streamconv.io.whole_file import copy_file, write_file
from streamconv.memory.budget import format_bytes

__all__ = ["Staging", "staging"]


class Staging:
    """The work folder in which a result is staged, owned by this run."""

    def __init__(self, destination: Path, notice: Callable[[str], None] = lambda _: None) -> None:
        self.destination = destination
        self.work = destination / WORK_FOLDER
        self.journal = self.work / JOURNAL
        self.owner = Ownership(self.work, notice)
        self._publication = Publication(self.work)
        self.new = self._publication.new
        self.notice = notice
        self._is_published = False
        self._names: set[str] = set()

    @property
    def is_resumable(self) -> bool:
        """Whether an earlier run left a journal and files to resume from."""
        return self.journal.is_file() and self.new.is_dir()

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
        """The staged path of the result's file ``name``, which belongs to the result from now on; its folders are
        made.
        """
        path = self._place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sync(self) -> None:
        """Make the names of the staged files durable."""
        for folder, _, _ in os.walk(self.new):
            sync_folder(Path(folder))

    def keep_only(self, names: Collection[str]) -> None:
        """Remove what is staged under other names than these, and links whatever their names."""
        for folder, folders, files in os.walk(self.new):
            for name in (*folders, *files):
                path = Path(folder, name)
                if path.is_symlink() or (name in files and str(path.relative_to(self.new)) not in names):
                    path.unlink()

    def text(self, name: str, text: str | bytes) -> None:
        """Stage a small text, or bytes, as the file ``name`` of the result, in place of what is staged there.

        Raises:
            DiskSpaceError, StorageError: the system refused.
        """
        data = text.encode() if isinstance(text, str) else text
        write_file(self._place(name), len(data), [data])

    def copy(self, name: str, origin: Path) -> None:
        """Stage a copy of a file as the file ``name`` of the result, replacing a staged file of that name.

        Raises:
            SourceError: ``origin`` is not a regular file, nor a link to one.
            DamagedError: ``origin`` was changed while it was copied.
            DiskSpaceError, StorageError: the system refused.
        """
        copy_file(origin, self._place(name))

    def _place(self, name: str) -> Path:
        self._names.add(Path(name).parts[0])
        return self.new / name

    def publish(self, texts: Mapping[str, str], retire: Iterable[str] = ()) -> None:
        """Move the result into place and ``retire`` aside, then put the commit record in place: the last of ``texts``.

        The other texts are staged and moved into place with the result.

        Args:
            texts: at least one small file by its name in the destination.
            retire: names in the destination that belong to an older checkpoint, deleted when the result is durable;
                names that are missing or replaced are left out.

        Raises:
            DestinationError: another run has taken over.
            DiskSpaceError, StorageError: the system refused; the message says whether the result is in place.
        """
        for name in list(texts)[:-1]:
            self.text(name, texts[name])
            self._make_youngest(name)
        self.sync()
        self._publication.publish(self._names, texts, retire, self.owner.confirm)
        self._is_published = True

    def _make_youngest(self, name: str) -> None:
        """Let no staged file be younger than this one, even if the clock was set back meanwhile."""
        youngest = max(path.lstat().st_mtime_ns for path in self.new.rglob("*"))
        if (self.new / name).stat().st_mtime_ns < youngest:
            os.utime(self.new / name, ns=(youngest, youngest))

    def recover(self) -> None:
        """Undo what a killed run left behind, and delete its staged files unless it has a journal.

        If its result is in place, what is staged or aside now is what was there before: it is deleted, and there is
        nothing to resume. The intent is removed only after all that, so that a kill here loses nothing.

        Raises:
            DestinationError: what it left cannot be understood.
            OSError: the system refused.
        """
        for folder in self.work.glob("replaced-*"):
            shutil.rmtree(folder, ignore_errors=True)
        if self._publication.undo():
            self._forget()
            return
        self._publication.forget()
        if not self.journal.exists():
            self._publication.discard(self.new)

    def _forget(self) -> None:
        """Delete what is staged or aside after the result is in place: the intent goes last."""
        self.journal.unlink(missing_ok=True)
        self._publication.discard(self.new)
        self._publication.forget()

    def begin_anew(self) -> None:
        """Discard the staged files and their journal."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir(exist_ok=True)

    def leave(self) -> None:
        """Undo a half-done publication, and remove all but the owner's files unless there is a journal.

        Signals wait for that.

        Raises:
            DiskSpaceError, StorageError: the system refused; the next run tries again. After the result has been
                published, that is no error.
        """
        with signals_held():
            try:
                if self.owner.is_lost():
                    return  # what is there is another run's
                if self._is_published:
                    self._forget()
                else:
                    self.recover()
                if not self.journal.exists():
                    self._clear()
            except OSError as error:
                if not self._is_published:
                    raise refused_by_system("clear up there", error, self.destination) from error

    def _clear(self) -> None:
        for child in [child for child in self.work.iterdir() if not is_of_owner(child.name)]:
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)

    def remove_journal(self) -> None:
        """Let no later run go on with what is staged."""
        with suppress(OSError):
            if not self.owner.is_lost():
                self.journal.unlink(missing_ok=True)

    def give_up(self) -> None:
        """Own the work folder no more; it goes if nothing is left in it."""
        self.owner.give_up()
        if self._is_published and self.work.exists():
            self.notice(f"{self.work} could not be removed; it is not needed any more")


@contextmanager
def staging(destination: Path, notice: Callable[[str], None] = lambda _: None) -> Iterator[Staging]:
    """An owned work folder in ``destination``: empty, or with the staged files and the journal of an earlier run.

    It is removed at the end unless it has a journal. A damaged source or a difference in values deletes the journal.

    Args:
        destination: the folder; it is made if need be, and removed again if it stays empty.
        notice: called with what a user should know at once.

    Raises:
        DestinationError: another run owns it, or what a killed run left cannot be understood.
        DiskSpaceError, StorageError: the system refused to make the folder, or something in it.
    """
    stage = Staging(destination, notice)
    with ExitStack() as cleanup:
        try:
            cleanup.callback(_remove_empty, stage.owner.made)
            cleanup.callback(stage.give_up)
            stage.owner.take()
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
            stage.remove_journal()
            raise


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, in this order, up to one that is not empty."""
    with suppress(OSError):
        for folder in filter(Path.exists, folders):
            folder.rmdir()
