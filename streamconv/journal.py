"""The journal of a run: what it is, and which of its tiles are durable. A killed run goes on from here.

A text file. Each line is a JSON value and its CRC-32; what follows the first line that is not whole was being written
when the run ended, and counts for nothing. The first line identifies the run: its source files by size and time of
change, what was asked for, and a digest of every byte move and of every byte that does not come from the source.
Each further line names tiles whose bytes were durable before the line was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamconv.checksums import crc32
from streamconv.errors import DamagedError, DestinationError
from streamconv.ledger import Ledger, TileDone
from streamconv.plans import Plan

__all__ = ["Journal", "identity_of", "refuse_another", "refuse_changed_source"]

_VERSION = 1
_FINISH_OTHERS = "run the command that began it, or say --restart to discard what it did"


class Journal:
    """The open journal of a run; lines are durable when they have been added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def read(self) -> Iterator[Any]:
        """The values of all whole lines; what follows them is cut off when the journal is opened to go on."""
        self._whole_nbytes = 0
        with self.path.open("rb") as file:
            for line in file:
                text, _, crc = line.rstrip(b"\n").rpartition(b" ")
                if not line.endswith(b"\n") or crc != b"%08x" % crc32(text):
                    return
                self._whole_nbytes += len(line)
                yield json.loads(text)

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Begin a new one.

        Raises:
            OSError: the system refused.
        """
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._add(identity)

    def resume(self, ledger: Ledger) -> None:
        """Enter all noted tiles into the ledger, and go on behind them.

        Raises:
            DestinationError: a line that is whole does not fit the jobs.
            OSError: the system refused.
        """
        lines = self.read()
        next(lines, None)
        try:
            for line in lines:
                for job, first, last, reads, writes in line:
                    ledger.enter(TileDone(job, first, last, tuple(reads), tuple(writes)))
        except (TypeError, ValueError) as error:
            raise DestinationError(
                f"the journal does not fit this conversion: {error}", where=self.path, remedy="say --restart"
            ) from error
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._fd, self._whole_nbytes)
        os.lseek(self._fd, 0, os.SEEK_END)

    def add(self, done: Sequence[TileDone]) -> None:
        """Note tiles; what they wrote must be durable before.

        Raises:
            OSError: the system refused.
        """
        self._add(done)

    def _add(self, value: Any) -> None:
        text = json.dumps(value, separators=(",", ":")).encode()
        line = memoryview(b"%s %08x\n" % (text, crc32(text)))
        while line:
            line = line[os.write(self._fd, line) :]
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close it as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def identity_of(plan: Plan) -> dict[str, Any]:
    """What makes a run the same run: its sources as they are now, its choices in words, a digest of all it does."""
    sources = {}
    for path in plan.source_paths:
        found = path.stat()
        sources[str(path)] = [found.st_size, found.st_mtime_ns]
    digest = hashlib.sha256()
    for job in plan.jobs:
        digest.update(repr(job).encode())
    for file in plan.files:
        digest.update(repr((file.path, file.layout.storages)).encode())
        for offset, data in file.layout.frame(dict.fromkeys(range(len(file.layout.storages)), 0)):
            digest.update(offset.to_bytes(8, "little") + data)
    digest.update(repr(sorted(plan.texts.items())).encode())
    choices = {
        "source": str(plan.source),
        "target": plan.target_format,
        "layout": str(plan.target_layout),
        "dtype": str(plan.dtype or "as stored"),
        "replicated": plan.replicated_policy,
    }
    return {"journal": _VERSION, "choices": choices, "sources": sources, "digest": digest.hexdigest()}


def refuse_another(noted: Any, identity: Mapping[str, Any], destination: Path) -> None:
    """Refuse to go on with a run that was another one.

    Raises:
        DestinationError: it was, or its journal cannot be read; the message says what differs.
    """
    if not isinstance(noted, dict) or noted.get("journal") != _VERSION:
        raise DestinationError(
            "an unfinished conversion is there, of another version", where=destination, remedy=_FINISH_OTHERS
        )
    with suppress(AttributeError, TypeError):
        for name, value in identity["choices"].items():
            if noted["choices"].get(name) != value:
                raise DestinationError(
                    f"an unfinished conversion is there with another {name}: {noted['choices'].get(name)}, not {value}",
                    where=destination,
                    remedy=_FINISH_OTHERS,
                )
        for path, facts in identity["sources"].items():
            if noted["sources"].get(path) != facts:
                raise DestinationError(
                    f"an unfinished conversion is there, and its source has changed since: {path}",
                    where=destination,
                    remedy="say --restart to discard what it did and convert the source as it is now",
                )
    if noted.get("digest") != identity["digest"]:
        raise DestinationError(
            "an unfinished conversion with other options is there", where=destination, remedy=_FINISH_OTHERS
        )


def refuse_changed_source(identity: Mapping[str, Any]) -> None:
    """Refuse a source that was written to while it was read.

    Raises:
        DamagedError: a file is gone, or its size or time of change is another.
    """
    for name, facts in identity["sources"].items():
        try:
            found = Path(name).stat()
        except OSError:
            found = None
        if found is None or [found.st_size, found.st_mtime_ns] != facts:
            raise DamagedError(
                "the file was changed while it was converted", where=name, remedy="convert when nothing writes to it"
            )
