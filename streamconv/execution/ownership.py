"""Which run owns a work folder: at most one at a time, also where file locks do not hold.

A lock (``flock``) decides between runs that the same kernel sees through the same mount. On NFS without locks, or
through two FUSE mounts of one folder, both would get it. So a run also makes an owner file that says who it is, and
rewrites it every few seconds. The files are numbered: who takes over from number 3 makes number 4, which only one can,
since a name is made once on every file system.

A stale owner is taken over by rule: its process is gone, which is known at once if it was started on this boot of this
machine and in this PID namespace; or else its file has not changed for :data:`_STALE_BEATS` beats, by the clock of the
run that waits. A run that was wrongly taken for dead, as one that was suspended, finds a higher number, and publishes
nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

from streamconv.core.errors import DestinationError
from streamconv.execution.processes import RunningProcess
from streamconv.io.durable import make_folders, write_all

__all__ = ["Ownership", "is_of_owner"]

LOCK = "lock"
_PREFIX = "owner."
_OWNER = re.compile(rf"{re.escape(_PREFIX)}([1-9][0-9]{{0,17}})")
_BEAT_SECONDS, _STALE_BEATS = 5.0, 12
_MOST = 1 << 16
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A folder that its owner removes while this run comes in is made again; nobody loses so often in a row.
_MOST_TRIES = 1000
# Tokens of the owners in this process.
_LIVE: set[str] = set()


class Ownership:
    """The owning of a work folder by this run, from :meth:`take` to :meth:`give_up`."""

    def __init__(
        self, work: Path, notice: Callable[[str], None] = lambda _: None, beat_seconds: float = _BEAT_SECONDS
    ) -> None:
        """``notice`` is called with what a user who waits should know."""
        self.work, self._notice, self._seconds = work, notice, beat_seconds
        self.made: list[Path] = []
        self._lock = -1
        self._number = 0
        self._ended = Event()
        self._heart = Thread(target=self._beat, daemon=True)
        self._me = RunningProcess.this()

    def take(self) -> None:
        """Make the work folder if need be, and own it. The folders that were made are in ``made``.

        Raises:
            DestinationError: another run owns it.
            OSError: the system refused.
        """
        for _ in range(_MOST_TRIES):
            with suppress(FileNotFoundError):  # its owner has just removed it
                self.made += make_folders(self.work)
                if self._takes_lock():
                    self._takes_number()
                    self._heart.start()
                    return
        raise self._in_use("others come and go there")

    def confirm(self) -> None:
        """Check that nobody has taken over.

        Raises:
            DestinationError: another run has, or the owner file is gone.
            OSError: the system refused to look.
        """
        if self.is_lost():
            raise DestinationError(
                "this run was taken for dead, and another one has taken over there; nothing was published",
                where=self.work.parent,
                remedy="wait until the other one ends",
            )

    def is_lost(self) -> bool:
        """Whether another run has taken over, or the owner file is gone.

        Raises:
            OSError: the system refused to look.
        """
        return self._last() != self._number

    def give_up(self) -> None:
        """Own it no more, if it was owned. The work folder is removed if nothing is left in it."""
        self._ended.set()
        if self._heart.is_alive():
            self._heart.join(self._seconds)
        if self._lock < 0:
            return
        is_empty = False
        with suppress(OSError):
            if not self.is_lost():
                is_empty = all(is_of_owner(child.name) for child in self.work.iterdir())
                self._file(self._number).unlink()
                if is_empty:
                    (self.work / LOCK).unlink(missing_ok=True)
        _LIVE.discard(self._me.token)
        # Some file systems keep a name for a removed file as long as it is open.
        self._close_lock()
        if is_empty:
            with suppress(OSError):
                self.work.rmdir()

    def _close_lock(self) -> None:
        # A process that was forked meanwhile has the descriptor too, and would keep the lock.
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._lock = -1

    def _takes_lock(self) -> bool:
        """Whether this run has the lock; False if its file has just been removed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.work / LOCK, flags, 0o666)
        held = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(descriptor), (self.work / LOCK).stat())
        except BlockingIOError as error:
            raise self._in_use() from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            held = True  # there are no locks there: the owner file decides
        finally:
            if held:
                self._lock = descriptor
            else:
                os.close(descriptor)
        return held

    def _takes_number(self) -> None:
        """Make the owner file with the next number.

        Raises:
            DestinationError: its last owner is alive.
        """
        with ExitStack() as undo:
            undo.callback(self._close_lock)
            undo.callback(_LIVE.discard, self._me.token)
            _LIVE.add(self._me.token)
            with ExitStack() as opened:
                # If the folder is removed and made again meanwhile, nothing more can be made in this one.
                folder = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, folder)
                while not self._takes_over_from(self._last(), folder):
                    pass
            undo.pop_all()

    def _takes_over_from(self, last: int, folder: int) -> bool:
        """Whether this run takes over from owner number ``last``, 0 for none; False if things have changed meanwhile.

        Raises:
            DestinationError: that owner is alive.
        """
        if last and not self._is_stale(last):
            return False
        if not self._makes_file(self._file(last + 1), folder):
            return False
        self._number = last + 1
        for child in self.work.iterdir():
            # Those of earlier owners, and of runs that were killed while they made theirs.
            if child.name.startswith(_PREFIX) and child != self._file(self._number) and not child.is_dir():
                child.unlink(missing_ok=True)
        return True

    def _makes_file(self, path: Path, folder: int) -> bool:
        """Whether this run, and no other, makes a file in the folder; where there are hard links it appears whole."""
        text = f"{0:020d}\n{json.dumps(asdict(self._me))}\n".encode()
        whole = self.work / f"{_PREFIX}of-{self._me.token}"
        _write_new(whole, text, folder)
        try:
            os.link(whole.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            if os.path.lexists(path):  # on NFS a link that was made may be reported as one that was there
                return os.path.samestat(whole.lstat(), path.lstat())
            try:
                _write_new(path, text, folder)
            except FileExistsError:
                return False
        finally:
            with suppress(OSError):
                os.unlink(whole.name, dir_fd=folder)
        return True

    def _is_stale(self, number: int) -> bool:
        """Whether an owner is dead; waits for its heartbeat if nothing else tells. False if it has given up meanwhile.

        Raises:
            DestinationError: it is alive.
        """
        first, owner = self._read(number)
        ended = None if owner is None else self._has_ended(owner)
        if ended is not None:
            if not ended:
                raise self._in_use(_words(owner))
            return True
        seconds = _STALE_BEATS * self._seconds
        self._notice(f"waiting up to {seconds:.0f} s to see whether {_words(owner)}, which works there, is alive")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._seconds / 4)
            if self._last() != number:
                return False
            if self._read(number)[0] != first:
                raise self._in_use(_words(owner))
        return True

    def _has_ended(self, owner: RunningProcess) -> bool | None:
        """Whether an owner's run has ended; None if only its heartbeat can tell."""
        ended = owner.has_ended(self._me)
        return owner.token not in _LIVE if ended is False and owner.pid == self._me.pid else ended

    def _read(self, number: int) -> tuple[bytes, RunningProcess | None]:
        """The content of an owner file, and whom it names; None if it is not whole."""
        try:
            with self._file(number).open("rb") as file:
                data = file.read(_MOST)
        except FileNotFoundError:
            return b"", None
        with suppress(ValueError, TypeError, IndexError, RecursionError):
            return data, RunningProcess.of(json.loads(data.split(b"\n")[1]))
        return data, None

    def _beat(self) -> None:
        """Rewrite the count at the beginning of the owner file again and again. It is opened each time, so that other
        hosts see what was written, and is not made anew if another run has removed it.
        """
        count = 0
        while not self._ended.wait(self._seconds):
            count += 1
            # What cannot be written now may be the next time; whoever waits for it waits for many beats.
            with suppress(OSError), self._file(self._number).open("r+b", buffering=0) as file:
                file.write(b"%020d" % count)

    def _numbers(self) -> list[int]:
        """The numbers of the owner files; none if the folder is gone."""
        try:
            found = [_OWNER.fullmatch(child.name) for child in self.work.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for match in found if match)

    def _last(self) -> int:
        return max(self._numbers(), default=0)

    def _file(self, number: int) -> Path:
        return self.work / f"{_PREFIX}{number}"

    def _in_use(self, whose: str = "") -> DestinationError:
        words = f" ({whose})" if whose else ""
        return DestinationError(
            f"another conversion is writing there{words}", where=self.work.parent, remedy="wait until it ends"
        )


def is_of_owner(name: str) -> bool:
    """Whether a name in a work folder is that of the lock, of an owner file, or of one that is being made."""
    return name == LOCK or name.startswith(_PREFIX)


def _words(owner: RunningProcess | None) -> str:
    return "an owner that has not said who it is" if owner is None else f"process {owner.pid} on {owner.host}"


def _write_new(path: Path, data: bytes, folder: int) -> None:
    """Write a file that is not there yet, in an open folder."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path.name, flags, 0o666, dir_fd=folder)
        try:
            write_all(descriptor, data)
        except OSError:
            os.unlink(path.name, dir_fd=folder)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
