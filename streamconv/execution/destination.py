"""Whether a result may go to a destination: what is there already, what is the source's, and whether it is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from streamconv.core.errors import DestinationError
from streamconv.core.work_folder import RECEIPT, WORK_FOLDER
from streamconv.execution.identity import identity_of
from streamconv.execution.receipt import is_receipt, is_result_of
from streamconv.io.refusals import refusals
from streamconv.planning.plan import Plan

__all__ = ["Destination", "check_destination"]

# Names that a checkpoint of any framework has directly in its folder: those of each target, and of a tag's folder.
_CHECKPOINTS = (
    "latest",
    "global_step*",
    "layer_*-model_*",
    "mp_rank_*",
    "latest_checkpointed_iteration.txt",
    "iter_*",
    "release",
    "*.distcp",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*",
    "adapter_config.json",
    "adapter_model*",
    "config.json",
    "generation_config.json",
)


class Destination:
    """The destination of a plan: what is there, and whether it is already done.

    Attributes:
        retired: the names there that the result retires, as of the last look.
        restart: whether what an earlier run left is to be discarded.
    """

    def __init__(self, work: Plan, destination: Path, *, overwrite: bool, restart: bool) -> None:
        self.work, self.destination = work, destination
        self.overwrite, self.restart = overwrite, restart
        self.retired: list[str] = []

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identity of the conversion."""
        return identity_of(self.work)

    def refuse_sources(self) -> None:
        """Refuse a destination that is, or holds, what is read: nothing is made there, not even for a moment.

        Raises:
            DestinationError: it is so.
        """
        self._look()

    def is_done(self) -> bool:
        """Look at what is there: whether it is the result of this very conversion. With ``overwrite`` that is replaced.

        Raises:
            DestinationError: something is there that must not be replaced.
            StorageError: the system refused to look.
        """
        seen = self._look()
        self.retired = seen.retired
        if self.overwrite:
            return False
        with refusals("look at what is there", self.destination):
            if not seen.retired and is_result_of(self.work, self.identity, self.destination):
                return True
        _refuse_taken(self.destination, seen.taken)
        return False

    def _look(self) -> _Seen:
        work = self.work
        names = [*(file.path for file in work.files), RECEIPT, *work.texts, *work.small, *work.copied]
        return _look(
            work.source,
            self.destination,
            sorted({name.split("/", 1)[0] for name in names}),
            owned=work.owned,
            beside=work.beside,
            sources=[*work.source_paths, *self._copied_from_elsewhere()],
            root=work.root,
        )

    def _copied_from_elsewhere(self) -> list[Path]:
        """The copied files, except those that already have their place in the destination."""
        places = {name: (self.destination.resolve() / name, path) for name, path in self.work.copied.items()}
        return [path for place, path in places.values() if path.resolve() != place]


def check_destination(
    source: Path,
    destination: Path,
    entries: Sequence[str],
    *,
    overwrite: bool,
    owned: Sequence[str] = (),
    beside: Sequence[str] = (),
    sources: Iterable[Path] = (),
    root: Path | None = None,
) -> list[str]:
    """Refuse a destination that must not be written.

    Args:
        source: the checkpoint that is read.
        destination: the folder for the result; it may not exist yet.
        entries: the names that the result will have directly in the destination, its commit record among them.
        overwrite: whether existing entries of these names may be replaced.
        owned: patterns (:mod:`fnmatch`) of further names that make a checkpoint of the result's kind.
        beside: patterns of names that belong to such a checkpoint only if there is one.
        sources: files that are read, wherever they are; the targets of links below ``source`` are read too.
        root: the folder that was given as the source, if ``source`` is below it; nothing is written into it either.

    Returns:
        The names of files and links there that match ``owned``, or ``beside`` if there is an older checkpoint, and that
        no entry replaces. If they stayed, they could be loaded in place of the result, or with it.

    Raises:
        DestinationError: writing there would change the source, or it is not a folder, or holds a checkpoint.
    """
    seen = _look(source, destination, entries, owned=owned, beside=beside, sources=sources, root=root)
    if not overwrite:
        _refuse_taken(destination, seen.taken)
    return seen.retired


class _Seen(NamedTuple):
    """The names in a destination that make up a checkpoint, and those that the result retires."""

    taken: list[str]
    retired: list[str]


def _look(
    source: Path,
    destination: Path,
    entries: Sequence[str],
    *,
    owned: Sequence[str],
    beside: Sequence[str],
    sources: Iterable[Path],
    root: Path | None,
) -> _Seen:
    """What is there, if the result may go there at all; the arguments are those of :func:`check_destination`."""
    children = sorted(destination.iterdir()) if destination.is_dir() else []
    matching = [child for child in children if _matches(child, owned)]
    old = [*matching, *(child for child in children if matching and _matches(child, beside))]
    retired = sorted(
        {child.name for child in old if child.name not in entries and (child.is_symlink() or child.is_file())}
    )
    _refuse_inside({source, root or source}, destination)
    _refuse_sources(source, destination, (*entries, *retired), sources)
    _refuse_no_folder(destination)
    names = {*entries, *(child.name for child in matching)}
    if is_receipt(destination / RECEIPT):
        names -= {RECEIPT}  # which alone is no checkpoint
    return _Seen([child.name for child in children if child.name in names or _matches(child, _CHECKPOINTS)], retired)


def _refuse_no_folder(destination: Path) -> None:
    if destination.is_symlink() and not destination.exists():
        raise DestinationError("the destination is a link to what is not there", where=destination)
    if destination.exists() and not destination.is_dir():
        raise DestinationError("the destination is not a folder", where=destination)
    if (destination / WORK_FOLDER).is_symlink():
        raise DestinationError(
            "the work folder in the destination is a link to elsewhere", where=destination / WORK_FOLDER
        )


def _refuse_taken(destination: Path, taken: Sequence[str]) -> None:
    if taken:
        raise DestinationError(
            f"the destination holds a checkpoint: {', '.join(taken[:4])}",
            where=destination,
            remedy="choose another folder, or --overwrite to replace it (it stays until the new one is durable)",
        )


def _matches(child: Path, patterns: Sequence[str]) -> bool:
    return child.name != WORK_FOLDER and any(fnmatchcase(child.name, pattern) for pattern in patterns)


def _refuse_inside(folders: Iterable[Path], destination: Path) -> None:
    """Refuse to write below the source, or the folder that was given as it: that would change what it is."""
    if not {folder.resolve() for folder in folders}.isdisjoint(destination.resolve().parents):
        raise DestinationError(
            "the destination is inside the source; a source is never written",
            where=destination,
            remedy="choose a folder beside it",
        )


def _refuse_sources(source: Path, destination: Path, names: Sequence[str], sources: Iterable[Path]) -> None:
    """Refuse to replace a source: its folder, or a file elsewhere that its folder links to."""
    real, origin = destination.resolve(), source.resolve()
    replaced = {(real / name).resolve() for name in names}
    # The path as given counts too: its last folder may be a link into another place.
    source_roots = {origin, origin.parent, source.absolute().parent.resolve()}
    if real in source_roots or replaced & {origin, *origin.parents}:
        raise DestinationError(
            "the destination is the source's own folder; a source is never written", where=destination
        )
    # If an entry in the destination is a link, only the link is replaced, so entries are not resolved.
    entries = {real / name for name in names}
    for path in (*sources, *_links(source)):
        there = Path(os.path.realpath(path))
        if not entries.isdisjoint({there, *there.parents}):
            raise DestinationError(
                f"{path.name} is read, and is {there}, which would be replaced; a source is never written",
                where=destination,
                remedy="choose another folder",
            )


def _links(folder: Path) -> Iterator[Path]:
    """The links below a folder."""
    for parent, folders, files in os.walk(folder):
        yield from (path for path in (Path(parent, name) for name in (*folders, *files)) if path.is_symlink())
