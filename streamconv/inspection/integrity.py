"""Compare every record of checkpoint files with the CRC-32 in its container."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from isal import isal_zlib

from streamconv.containers.open_any import open_any
from streamconv.containers.pickles.machine import Global
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import StorageError, StreamconvError
from streamconv.core.lazy import LazyTensor, Storage, View
from streamconv.inspection.report import Finding, finding_of
from streamconv.io.checksums import crc32
from streamconv.values.sweep import Part, SweepSettings, sweep

__all__ = ["Verdict", "check_files"]

_COPY = "its bytes have changed since it was saved: copy the file again from where it was written"


@dataclass(slots=True)
class Verdict:
    """The number of records with the right CRC-32, the number without one, the bytes read, findings for broken files
    and records, and the classes and functions that each file's pickles name.
    """

    records: int = 0
    without_crc: int = 0
    nbytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    named: list[tuple[Path, dict[Global, int]]] = field(default_factory=list)


def check_files(
    paths: Iterable[Path], settings: SweepSettings, progress: Callable[[int, int], None] | None = None
) -> Verdict:
    """Check all records of torch files, old torch files, ``.distcp`` and safetensors.

    Safetensors files and torch files from before 1.6 have no checksums: only their headers and extents are checked.

    Raises:
        StorageError: the system refused to read.
    """
    verdict = Verdict()
    records: list[Storage] = []
    for path in paths:
        try:
            file = open_any(path)
            stored = file.records()
        except StorageError:
            raise
        except StreamconvError as error:
            verdict.findings.append(Finding("damage", error.what, error.where or str(path), error.remedy, 6))
            continue
        verdict.named.append((path, dict(file.globals)))
        records += (record for record in stored if record.crc is not None)
        verdict.without_crc += sum(record.crc is None for record in stored)
    try:
        _check(records, settings, progress, verdict)
    except StreamconvError as error:
        verdict.findings.append(finding_of(error))
    return verdict


def _check(
    records: list[Storage],
    settings: SweepSettings,
    progress: Callable[[int, int], None] | None,
    verdict: Verdict,
) -> None:
    items = [(LazyTensor.stored(View(r, DTYPES["uint8"], 0, (1,)), (r.nbytes,)),) for r in records]
    for record, parts in zip(records, sweep(items, _look, settings, progress), strict=True):
        crc = 0
        for nbytes, part in parts:
            crc = isal_zlib.crc32_combine(crc, part, nbytes)
        verdict.nbytes += record.nbytes
        if crc == record.crc:
            verdict.records += 1
            continue
        where = f"{record.path}, bytes {record.offset} to {record.offset + record.nbytes}"
        words = f"record {record.name}: its CRC-32 is {crc:08x}, recorded is {record.crc:08x}"
        verdict.findings.append(Finding("damage", words, where, _COPY, 6))


def _look(part: Part) -> tuple[int, int]:
    (array,) = part.arrays
    return array.nbytes, crc32(array.data)
