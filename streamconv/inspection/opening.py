"""Open many files without stopping at a broken one; list faults, and the classes that their pickles name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from streamconv.containers.open_any import open_any
from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.verdicts import verdict
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import StreamconvError
from streamconv.inspection.report import BROKEN, UNSAFE, Finding, GlobalRow, finding_of
from streamconv.io.reading import reading

__all__ = ["broken_file", "global_rows", "joined_globals", "open_all", "unfinished_zips", "unsafe_globals"]

# By its names in Python 2, which protocol 2 and so torch.save writes, and in Python 3.
_GETATTR = {"__builtin__.getattr", "builtins.getattr"}
_COPY = "copy it again from the training run's storage"
_COULD = "which could run code when torch or pickle loads it"


def open_all(paths: Iterable[Path]) -> tuple[list[StoredFile], list[Finding]]:
    """The files that can be opened, and a finding for each of the others."""
    files: list[StoredFile] = []
    findings: list[Finding] = []
    for path in paths:
        result = _try_open(path)
        if isinstance(result, StoredFile):
            files.append(result)
        else:
            findings.append(result)
    return files, findings


def _try_open(path: Path) -> StoredFile | Finding:
    try:
        return open_any(path)
    except StreamconvError as error:
        return broken_file(path, error)


def broken_file(path: Path, error: StreamconvError) -> Finding:
    """The finding for a file that cannot be opened."""
    return Finding("damage", finding_of(error).what, str(path), error.remedy, BROKEN)


def unfinished_zips(folder: Path, names: Collection[str]) -> tuple[list[Finding], list[str]]:
    """Findings for files that begin as a zip and do not end as one: they were cut off, or are still being written.

    Only a few bytes of each file are read, which is cheap for hundreds of optimizer files that are not opened.

    Returns:
        findings, and the files that do not begin as a zip.
    """
    cut_off, others = [], []
    for name in names:
        begins, ends = _ends_of(folder / name)
        if not begins:
            others.append(name)
        elif not ends:
            words = "the file begins as a zip and has no end: it was cut off"
            cut_off.append(Finding("damage", words, str(folder / name), _COPY, BROKEN))
    return cut_off, others


def _ends_of(path: Path) -> tuple[bool, bool]:
    """Whether a file begins as a zip, and whether it ends as one."""
    if not path.is_file():
        return False, False
    with reading(path) as file:
        ends = file.read(max(0, file.nbytes - 22), 22)
        return file.read(0, 4) == b"PK\x03\x04", ends.startswith(b"PK\x05\x06")


def global_rows(files: Sequence[tuple[str, dict[Global, int]]]) -> list[GlobalRow]:
    """Every class and function that files' pickles name: those that could run code first, plain ones last."""
    return joined_globals(
        GlobalRow(str(ref), verdict(ref), called, (name,)) for name, named in files for ref, called in named.items()
    )


def joined_globals(rows: Iterable[GlobalRow]) -> list[GlobalRow]:
    """One row for each class and function, in :func:`global_rows`' order."""
    order = {"executes": 0, "refused": 1, "plain": 2}
    by_name: dict[str, tuple[str, int, list[str]]] = {}
    for row in rows:
        _, called, where = by_name.setdefault(row.name, (row.verdict, 0, []))
        where += row.files
        by_name[row.name] = row.verdict, called + row.called, where
    joined = [GlobalRow(name, word, called, tuple(where)) for name, (word, called, where) in by_name.items()]
    return sorted(joined, key=lambda row: (order[row.verdict], row.name))


def unsafe_globals(rows: Iterable[GlobalRow]) -> list[Finding]:
    """A finding for each class or function that could run code or touch the system if the file were unpickled."""
    named = [row for row in rows if row.verdict == "executes"]
    # Python 3.11.0 to 3.11.3 pickled an enum's member as getattr(class, name): getattr alone is no attack.
    alone = {row.name for row in named} <= _GETATTR
    return [
        Finding(
            "note" if alone else "damage",
            f"{'' if alone else UNSAFE}the pickle names {row.name}, "
            + ("as enums are pickled by Python 3.11.0 to 3.11.3" if alone else _COULD),
            ", ".join(row.files[:4]),
            "load it with streamconv, which never runs what a pickle names, and find out who wrote it",
            0 if alone else 6,
        )
        for row in named
    ]
