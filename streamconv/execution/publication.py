"""Move a staged result into its destination, so that there is the old checkpoint or the new one, never a mixture.

An entry is moved by exchanging two names in one step, or where the file system cannot (NFS, Lustre), by moving the old
one aside and the new one in. The commit record (Megatron's tracker file, a config.json) is put in place last. That one
step decides: before it everything can be undone, after it the result is whole.

Where more than a folder changes, the old record is moved aside first: while the entries are of two checkpoints there is
no record, and no loader takes them for a checkpoint. What is to be moved is noted first, in the intent, with the inodes
of what is moved in and of what was there. So the next run can undo what a killed one did, and touches nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from streamconv.core.errors import DestinationError
from streamconv.core.signals import signals_held
from streamconv.core.work_folder import INTENT
from streamconv.io.durable import exchange, sync_folder, write_text
from streamconv.io.refusals import refused_by_system

__all__ = ["Publication"]


@dataclass(frozen=True, slots=True)
class _Intent:
    """What is moved: the inodes of the entries that are moved in, and of those that were there, by name; the names that
    are only moved aside; and the texts, the last of which is the record.
    """

    entries: Mapping[str, int]
    before: Mapping[str, int]
    retired: Sequence[str]
    texts: Sequence[str]

    @property
    def record(self) -> str:
        return self.texts[-1]


class Publication:
    """The moving of a result from a work folder into the folder that it is in."""

    def __init__(self, work: Path) -> None:
        self.work, self.destination = work, work.parent
        self.new, self.old, self.intent = work / "new", work / "old", work / INTENT

    def publish(
        self,
        names: Iterable[str],
        texts: Mapping[str, str],
        retire: Iterable[str],
        confirm: Callable[[], None],
    ) -> None:
        """Move staged entries into place and ``retire`` aside, then put the record in place: the last of ``texts``.

        Signals wait until it is done. What an error leaves half done, :meth:`undo` undoes.

        Args:
            names: the entries; they and all that is in them are durable.
            texts: the small files of the result that are written last, by name; the others are among ``names``.
            retire: names in the destination that belong to an older checkpoint.
            confirm: called right before the first name changes; raises an error if it must not.

        Raises:
            DiskSpaceError, StorageError: the system refused; the message says if the result is in place.
        """
        record, retired = list(texts)[-1], sorted(set(retire))
        if not all(map(_is_name, retired)):
            raise ValueError(f"not names in the destination: {retired}")
        with signals_held():
            try:
                intent = self._note(names, texts, retired)
                confirm()
                self._move(intent)
                (self.work / record).replace(self.destination / record)
                sync_folder(self.destination)
            except OSError as error:
                is_decided = os.path.lexists(self.intent) and not os.path.lexists(self.work / record)
                raise refused_by_system(
                    "make sure that a power failure leaves the result there (it is in place, and whole)"
                    if is_decided
                    else "publish the result",
                    error,
                    self.destination,
                ) from error

    def _note(self, names: Iterable[str], texts: Mapping[str, str], retire: Iterable[str]) -> _Intent:
        """Write the record and the intent, and make both durable: the intent is never there without the record."""
        record = list(texts)[-1]
        if (self.destination / record).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.destination / record))
        self.old.mkdir(exist_ok=True)
        write_text(self.work / record, texts[record])
        sync_folder(self.work)
        entries = {name: (self.new / name).lstat().st_ino for name in sorted(names)}
        retired = [name for name in retire if name not in entries and name != record]
        there = (name for name in (*entries, *retired, record) if os.path.lexists(self.destination / name))
        before = {name: (self.destination / name).lstat().st_ino for name in there}
        intent = _Intent(entries, before, retired, list(texts))
        write_text(self.intent, json.dumps(asdict(intent)))
        sync_folder(self.work)
        return intent

    def _move(self, intent: _Intent) -> None:
        changed = [*(name for name in intent.entries if name not in intent.texts), *intent.retired]
        # A folder alone is exchanged in one step, and its record only names it.
        is_one_step = len(changed) == 1 and (self.new / changed[0]).is_dir()
        if not is_one_step and intent.record in intent.before:
            self._set_aside(intent.record)
            sync_folder(self.old)
            sync_folder(self.destination)
        for name in intent.entries:
            self._put(name)
        for name in intent.retired:
            if os.path.lexists(self.destination / name):
                self._set_aside(name)
        sync_folder(self.old)
        sync_folder(self.destination)

    def _put(self, name: str) -> None:
        """Move a staged entry into place."""
        staged, target = self.new / name, self.destination / name
        if os.path.lexists(target):
            if exchange(staged, target):
                return
            self._set_aside(name)
        staged.rename(target)

    def _set_aside(self, name: str) -> None:
        (self.destination / name).rename(self.old / name)

    def undo(self) -> bool:
        """Undo what a run did that was ended while it published; returns whether its result is in place instead.

        Entries that it had moved in are moved out again, and those that were there are put back, the old record last.
        All are recognised by their inodes. If its record is in place, so is its result, and what is staged or aside is
        what was there before.

        Raises:
            DestinationError: the intent is damaged, or does not fit what is there.
            OSError: the system refused.
        """
        for folder in (self.new, self.old):
            if folder.is_symlink():  # no run makes such a link; what it leads to is not touched
                folder.unlink()
        intent = self._read()
        if intent is None:
            self._put_back_unnamed()
            return False
        is_published = not os.path.lexists(self.work / intent.record)
        if is_published:
            staged = next((name for name, inode in intent.entries.items() if _is(self.new / name, inode)), None)
            if staged is not None:
                raise self._unreadable(f"{intent.record} is in place, and {staged} is not")
        else:
            self._check(intent)
            for name, inode in reversed(list(intent.entries.items())):
                self._take_out(name, inode)
            sync_folder(self.destination)
            for name, inode in intent.before.items():  # the record is the last of them
                self._put_back(name, inode)
        sync_folder(self.destination)
        return is_published

    def forget(self) -> None:
        """Remove what was moved aside, then the intent: it is there until all else is durably gone.

        Raises:
            OSError: the system refused.
        """
        self.discard(self.old)
        sync_folder(self.work)
        self.intent.unlink(missing_ok=True)
        sync_folder(self.work)

    def _check(self, intent: _Intent) -> None:
        """Check that every inode is where this run can find it: a copy of the folder has others."""
        for name, inode in (*intent.entries.items(), *intent.before.items()):
            if not any(_is(folder / name, inode) for folder in (self.destination, self.new, self.old)):
                raise self._unreadable(f"{name} is not the one that it was")

    def _take_out(self, name: str, inode: int) -> None:
        """Move an entry back to where it was staged, and the entry that it was exchanged with back into place."""
        staged, target = self.new / name, self.destination / name
        if not _is(target, inode):
            return
        if os.path.lexists(staged):
            if exchange(staged, target):
                return
            self.old.mkdir(exist_ok=True)
            staged.rename(self.old / name)
        target.rename(staged)

    def _put_back(self, name: str, inode: int) -> None:
        aside, target = self.old / name, self.destination / name
        if _is(aside, inode):
            if os.path.lexists(target):
                raise self._unreadable(f"another {name} has been put there meanwhile")
            aside.rename(target)

    def _put_back_unnamed(self) -> None:
        """Put back what is aside and no intent names: nobody knows why, and it may be all that is left of it."""
        for aside in sorted(self.old.iterdir()) if self.old.is_dir() else ():
            if not aside.is_symlink() and not os.path.lexists(self.destination / aside.name):
                aside.rename(self.destination / aside.name)

    def discard(self, folder: Path) -> None:
        """Delete a folder below the work folder. What cannot be deleted (an open file on NFS) is moved aside, so that
        no later run takes it for an old or a new checkpoint.
        """
        shutil.rmtree(folder, ignore_errors=True)
        if folder.is_dir():
            folder.rename(Path(tempfile.mkdtemp(prefix="replaced-", dir=self.work)) / folder.name)

    def _read(self) -> _Intent | None:
        """The intent of a run that began to publish; None if none did."""
        try:
            noted = json.loads(self.intent.read_text())
            intent = _Intent(**noted)
            names = [*intent.entries, *intent.before, *intent.retired, *intent.texts]
            inodes = [*intent.entries.values(), *intent.before.values()]
            if not (intent.entries and intent.texts) or not all(map(_is_name, names)):
                raise ValueError("not the names of entries")
            if not all(type(inode) is int for inode in inodes):
                raise ValueError("not the inodes of entries")
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._unreadable(str(error)) from error
        return intent

    def _unreadable(self, why: str) -> DestinationError:
        return DestinationError(
            f"a conversion was cut off there while it moved its result into place, and this cannot be undone: {why}",
            where=self.intent,
            remedy=f"what it moved is in {self.old} and {self.new}: put the checkpoint that you want together, then "
            f"remove {self.work}",
        )


def _is(path: Path, inode: int) -> bool:
    """Whether a path is that of an entry with this inode; a link is not followed."""
    return os.path.lexists(path) and path.lstat().st_ino == inode


def _is_name(name: object) -> bool:
    """Whether this is the name of an entry directly in a folder, not a path."""
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name
