"""Open many files without stopping at a broken one, and say what their pickles name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from streamconv.containers.open_any import open_any
from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.verdicts import verdict
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import StreamconvError
from streamconv.inspection.report import Finding, GlobalRow, finding_of

__all__ = ["global_rows", "joined_globals", "open_all", "unsafe_globals"]


_GETATTR = "builtins.getattr"
_COULD = "which could run code when torch or pickle loads it"


def open_all(paths: Iterable[Path]) -> tuple[list[StoredFile], list[Finding]]:
    """Open files one by one; what cannot be opened is a finding."""
    files: list[StoredFile] = []
    findings: list[Finding] = []
    for path in paths:
        found = _try_open(path)
        if isinstance(found, StoredFile):
            files.append(found)
        else:
            findings.append(found)
    return files, findings


def _try_open(path: Path) -> StoredFile | Finding:
    try:
        return open_any(path)
    except StreamconvError as error:
        return Finding("damage", finding_of(error).what, str(path), error.remedy, 6)


def global_rows(files: Sequence[tuple[str, dict[Global, int]]]) -> list[GlobalRow]:
    """Every class and function that files' pickles name: those that could run code first, plain ones last."""
    return joined_globals(
        GlobalRow(str(each), verdict(each), called, (name,)) for name, named in files for each, called in named.items()
    )


def joined_globals(rows: Iterable[GlobalRow]) -> list[GlobalRow]:
    """One row for each class and function, in :func:`global_rows`' order."""
    order = {"executes": 0, "refused": 1, "plain": 2}
    found: dict[str, tuple[str, int, list[str]]] = {}
    for row in rows:
        _, called, where = found.setdefault(row.name, (row.verdict, 0, []))
        where += row.files
        found[row.name] = row.verdict, called + row.called, where
    joined = [GlobalRow(name, word, called, tuple(where)) for name, (word, called, where) in found.items()]
    return sorted(joined, key=lambda row: (order[row.verdict], row.name))


def unsafe_globals(rows: Iterable[GlobalRow]) -> list[Finding]:
    """A finding for each class or function that could run code or touch the system if the file were unpickled."""
    named = [row for row in rows if row.verdict == "executes"]
    # Python 3.11.0 to 3.11.3 pickled an enum's member as getattr(class, name): alone it is an enum, no attack.
    alone = [row.name for row in named] == [_GETATTR]
    return [
        Finding(
            "note" if alone else "damage",
            f"{'' if alone else 'unsafe: '}the pickle names {row.name}, "
            + ("as enums are pickled by Python 3.11.0 to 3.11.3" if alone else _COULD),
            ", ".join(row.files[:4]),
            "load it with streamconv, which never runs what a pickle names, and find out who wrote it",
            0 if alone else 6,
        )
        for row in named
    ]
