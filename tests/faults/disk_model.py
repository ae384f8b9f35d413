"""A disk that may lose what was not synced: what it could hold after a power cut, call for call.

Of a file, the bytes since its last fsync or fdatasync may be lost or kept, each write by itself, and so may its size.
Of a folder, the names since its last fsync. A rename is one step, in both of its folders. Whether names that changed
are kept in their order is not promised either. A sync_file_range promises nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tests.faults.cases import Tree
from tests.faults.points import Call

__all__ = ["Crashed", "Disk"]

Keep = Callable[[int], bool]
"""Whether to keep what was done as the n-th of the calls, and is not synced."""


@dataclass(frozen=True, slots=True)
class Change:
    """To a file, as the ``step``-th call: ``data`` at an offset, or a new size if there is none."""

    step: int
    offset: int
    data: bytes | None = None

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            content[self.offset :] = bytes(max(0, self.offset - len(content)))
            return
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass(slots=True)
class File:
    synced: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)

    def content(self, keep: Keep) -> bytes:
        kept = [change for change in self.changes if keep(change.step)]
        if not kept:
            return bytes(self.synced)
        content = bytearray(self.synced)
        for change in kept:
            change.apply(content)
        return bytes(content)

    def sync(self) -> None:
        for change in self.changes:
            change.apply(self.synced)
        self.changes.clear()


@dataclass(slots=True)
class Folder:
    """``now`` are the names as a program sees them; a change is (step, name, inode or None)."""

    synced: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[int, str, int | None]] = field(default_factory=list)

    def put(self, step: int, name: str, inode: int | None) -> None:
        _put(self.now, name, inode)
        self.changes.append((step, name, inode))

    def names(self, keep: Keep) -> dict[str, int]:
        names = dict(self.synced)
        for step, name, inode in self.changes:
            if keep(step):
                _put(names, name, inode)
        return names

    def sync(self, steps: set[int]) -> None:
        self.synced = self.names(lambda step: step in steps)
        self.changes = [change for change in self.changes if change[0] not in steps]


def _put(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


@dataclass(frozen=True, slots=True)
class Crashed:
    """What a disk holds after a power cut: files and folders (None) by path, and the inode that each had."""

    content: dict[str, bytes | None]
    inodes: dict[int, str]

    @property
    def files(self) -> Tree:
        return {path: data for path, data in self.content.items() if data is not None}


class Disk:
    """A folder on a disk, at first as it is and durable, then after the calls that are made in it."""

    def __init__(self, root: Path) -> None:
        self.root, self._step = root, 0
        self._files: dict[int, File] = {}
        self._folders: dict[int, Folder] = {}
        self._top = self._load(root)

    def _load(self, path: Path) -> int:
        inode = path.stat().st_ino
        if path.is_dir():
            names = {child.name: self._load(child) for child in path.iterdir()}
            self._folders[inode] = Folder(names, dict(names))
        else:
            self._files[inode] = File(bytearray(path.read_bytes()))
        return inode

    @property
    def unsynced(self) -> list[int]:
        """The calls of which something may be lost now."""
        files = (change.step for file in self._files.values() for change in file.changes)
        return sorted({*files, *self.unsynced_names})

    @property
    def unsynced_names(self) -> list[int]:
        """Those of them that changed names."""
        return sorted({change[0] for folder in self._folders.values() for change in folder.changes})

    @property
    def unsynced_sizes(self) -> list[int]:
        """Those of them that changed the size of a file."""
        return [change.step for file in self._files.values() for change in file.changes if change.data is None]

    def apply(self, call: Call) -> None:
        """Do what a call did."""
        self._step += 1
        if call.result >= 0 and call.name in self._DONE:
            self._DONE[call.name](self, call)

    def _place(self, path: str) -> tuple[Folder, str]:
        """The folder that a path is in, and its name there; outside of the root, a folder that nobody looks at."""
        if not path.startswith(f"{self.root}/"):
            return Folder(), path
        *parents, name = Path(path).relative_to(self.root).parts
        folder = self._folders[self._top]
        for parent in parents:
            folder = self._folders[folder.now[parent]]
        return folder, name

    def _open(self, call: Call) -> None:
        folder, name = self._place(call.path)
        if name not in folder.now:
            self._files[call.inode] = File()
            folder.put(self._step, name, call.inode)
        elif call.nbytes & os.O_TRUNC:
            self._files[folder.now[name]].changes.append(Change(self._step, 0))

    def _mkdir(self, call: Call) -> None:
        folder, name = self._place(call.path)
        self._folders[call.inode] = Folder()
        folder.put(self._step, name, call.inode)

    def _write(self, call: Call) -> None:
        self._files[call.inode].changes.append(Change(self._step, call.offset, call.data))

    def _resize(self, call: Call) -> None:
        self._files[call.inode].changes.append(Change(self._step, call.nbytes))

    def _sync(self, call: Call) -> None:
        if call.inode in self._files:
            self._files[call.inode].sync()
        elif call.inode in self._folders:
            steps = {step for step, _, _ in self._folders[call.inode].changes}
            for folder in self._folders.values():
                folder.sync(steps)

    def _remove(self, call: Call) -> None:
        folder, name = self._place(call.path)
        folder.put(self._step, name, None)

    def _link(self, call: Call) -> None:
        folder, name = self._place(call.other)
        folder.put(self._step, name, call.inode)

    def _rename(self, call: Call) -> None:
        self._remove(call)
        self._link(call)

    def _exchange(self, call: Call) -> None:
        (first, name), (second, other) = self._place(call.path), self._place(call.other)
        there = second.now[other]
        first.put(self._step, name, there)
        second.put(self._step, other, call.inode)

    _DONE: ClassVar[dict[str, Callable[[Disk, Call], None]]] = {
        "open": _open,
        "mkdir": _mkdir,
        **dict.fromkeys(("write", "pwrite"), _write),
        "ftruncate": _resize,
        **dict.fromkeys(("fsync", "fdatasync"), _sync),
        **dict.fromkeys(("unlink", "rmdir"), _remove),
        "link": _link,
        "rename": _rename,
        "exchange": _exchange,
    }

    def crashed(self, keep: Keep) -> Crashed:
        """What is there after a power cut that keeps some of what is not synced."""
        content: dict[str, bytes | None] = {}
        inodes: dict[int, str] = {}
        for path, inode in self._walk("", self._top, keep, ()):
            content[path] = self._files[inode].content(keep) if inode in self._files else None
            inodes[inode] = path
        return Crashed(content, inodes)

    def _walk(self, prefix: str, inode: int, keep: Keep, above: Sequence[int]) -> Iterator[tuple[str, int]]:
        """All paths. A folder of which two names were kept can be in itself; it is not followed there."""
        for name, child in self._folders[inode].names(keep).items():
            if child in above:
                continue
            yield f"{prefix}{name}", child
            if child in self._folders:
                yield from self._walk(f"{prefix}{name}/", child, keep, (*above, inode))
