"""The journal of a run: its identity, and which of its tiles are durable. A killed run is resumed from it.

It is a text file. Each line is a JSON value and its CRC-32. A line that is not whole was being written when the run
ended; it and all that follows are ignored. The first line identifies the run: its source files by size, time of change
and a digest of their metadata, the user's choices, and a digest of every byte move and of every byte that does not come
from the source. Each further line names tiles whose bytes were durable before the line was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.core.errors import DestinationError
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.io.checksums import crc32
from streamconv.planning.plan import Plan

__all__ = ["Journal", "identity_of", "refuse_another", "refuse_incomplete"]

_VERSION = 2
_FINISH_OTHERS = "run the command that began it, or say --restart to discard what it did"


class Journal:
    """The open journal of a run; a line is durable once it has been added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def read(self) -> Iterator[Any]:
        """The values of all whole lines; :meth:`resume` cuts off the rest of the file.

        Raises:
            DestinationError: a whole line is not JSON.
        """
        self._whole_nbytes = 0
        with self.path.open("rb") as file:
            for line in file:
                text, _, crc = line.rstrip(b"\n").rpartition(b" ")
                if not line.endswith(b"\n") or crc != b"%08x" % crc32(text):
                    return
                self._whole_nbytes += len(line)
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise self._unfit(error) from error
                yield value

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Begin a new journal.

        Raises:
            OSError: the system refused.
        """
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._add(identity)

    def resume(self, log: TileLog) -> None:
        """Enter all recorded tiles into the log, and continue after the last whole line.

        Raises:
            DestinationError: a whole line does not fit the jobs.
            OSError: the system refused.
        """
        lines = self.read()
        next(lines, None)
        try:
            for line in lines:
                for entry in line:
                    log.enter(_tile(*entry))
        except (TypeError, ValueError) as error:
            raise self._unfit(error) from error
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._fd, self._whole_nbytes)
        os.lseek(self._fd, 0, os.SEEK_END)

    def add(self, done: Sequence[TileDone]) -> None:
        """Record tiles, whose bytes must be durable already.

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

    def _unfit(self, error: Exception) -> DestinationError:
        return DestinationError(
            f"the journal does not fit this conversion: {error}", where=self.path, remedy="say --restart"
        )

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _tile(job: Any, first: Any, last: Any, reads: Any, writes: Any) -> TileDone:
    if not isinstance(reads, list) or not isinstance(writes, list):
        raise TypeError("checksums are no lists")
    for number in (job, first, last, *reads, *writes):
        if type(number) is not int or abs(number) >= 1 << 63:
            raise TypeError(f"{number!r} is no number of a tile")
    if any(not 0 <= crc < 1 << 32 for crc in (*reads, *writes)):
        raise ValueError("a CRC-32 has 32 bits")
    return TileDone(job, first, last, tuple(reads), tuple(writes))


def identity_of(plan: Plan) -> dict[str, Any]:
    """The identity of a run: its sources as they were opened, its choices in words, and a digest of all it writes."""
    sources = {str(each.path): [each.nbytes, each.mtime_ns, each.digest.hex()] for each in plan.identities}
    digest = hashlib.sha256()
    for job in plan.jobs:
        digest.update(repr(job).encode())
    for file in plan.files:
        digest.update(repr((file.path, file.layout.storages)).encode())
        for offset, data in file.layout.frame(dict.fromkeys(range(len(file.layout.storages)), 0)):
            digest.update(offset.to_bytes(8, "little") + data)
    for texts in (plan.texts, plan.small, {name: str(path) for name, path in plan.copied.items()}):
        digest.update(repr(sorted(texts.items())).encode())
    choices = {
        "source": str(plan.source),
        "target": plan.target_format,
        "layout": str(plan.target_layout),
        "dtype": str(plan.dtype or "as stored"),
        "replicated": plan.replicated_policy,
    }
    return {"journal": _VERSION, "choices": choices, "sources": sources, "digest": digest.hexdigest()}


def refuse_another(noted: Any, identity: Mapping[str, Any], destination: Path) -> None:
    """Refuse to resume a run with another identity.

    Raises:
        DestinationError: the identities differ, or its journal cannot be read; the message says what differs.
    """
    known = noted if isinstance(noted, dict) else {}
    choices, sources = known.get("choices"), known.get("sources")
    if known.get("journal") != _VERSION or not isinstance(choices, dict) or not isinstance(sources, dict):
        raise DestinationError(
            "an unfinished conversion is there, of another version", where=destination, remedy=_FINISH_OTHERS
        )
    for name, value in identity["choices"].items():
        if choices.get(name) != value:
            raise DestinationError(
                f"an unfinished conversion is there with another {name}: {choices.get(name)}, not {value}",
                where=destination,
                remedy=_FINISH_OTHERS,
            )
    for path, facts in identity["sources"].items():
        if sources.get(path) != facts:
            raise DestinationError(
                f"an unfinished conversion is there, and its source has changed since: {path}",
                where=destination,
                remedy="say --restart to discard what it did and convert the source as it is now",
            )
    if known.get("digest") != identity["digest"]:
        raise DestinationError(
            "an unfinished conversion with other options is there", where=destination, remedy=_FINISH_OTHERS
        )


def refuse_incomplete(staged: Mapping[Path, int]) -> None:
    """Refuse to resume if a staged file is missing, or has another size in bytes than it was made with.

    Raises:
        DestinationError: there is such a file.
    """
    for path, nbytes in staged.items():
        if not path.is_file() or path.stat().st_size != nbytes:
            raise DestinationError(
                f"an unfinished conversion is there, and a file of it is gone or is not of {nbytes} bytes",
                where=path,
                remedy="say --restart to begin anew",
            )
