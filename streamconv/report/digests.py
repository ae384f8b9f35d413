"""Digests, and a checkpoint that was held against them, as a document and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from streamconv.core.result import Face
from streamconv.memory.budget import format_bytes
from streamconv.report.blocks import MOST_ROWS, Block, Pairs, Table, plain_text, plural, titled
from streamconv.report.notebook import blocks_html
from streamconv.verification.against_digests import DigestComparison
from streamconv.verification.digests import Digests, digests_dict

__all__ = ["digest_blocks", "digest_comparison_blocks", "digest_comparison_dict"]


def digest_blocks(found: Digests, *, lists_all: bool = True) -> list[Block]:
    """The blocks of ``digest``; the digests themselves if ``lists_all``."""
    blocks: list[Block] = [Pairs("digests", tuple(_facts(found)))]
    if lists_all:
        rows = tuple((name, each.dtype, _shape(each.shape), each.digest) for name, each in found.tensors.items())
        blocks.append(Table(found.algorithm, ("tensor", "dtype", "shape", "digest"), rows))
    return blocks


def _facts(found: Digests) -> Iterator[tuple[str, str]]:
    yield "path", found.path
    yield "is", found.what
    yield "digests", f"{plural(len(found.tensors), 'tensor')} by {found.algorithm} and {found.names} names"
    yield "size", format_bytes(found.nbytes)
    if found.vocabulary is not None:
        yield "vocabulary", f"{found.vocabulary} true rows, without padding"
    if found.records is not None:
        records = found.records
        more = ((records.in_part, "read in part"), (records.without_crc, "have none"))
        words = [f"{plural(records.checked, 'record')} compared", *(f"{count} {what}" for count, what in more if count)]
        yield "CRC-32", ", ".join(words)
    for drift in found.drifts:
        yield "warning", f"{drift.name}: copies differ in {drift.elements} elements, by at most {drift.largest:g}"
    for key in found.left_out:
        yield "left out", f"{key}: zero in every element of every layer, as in layouts without it"
    for note in found.notes:
        yield "note", note


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def digest_comparison_blocks(found: DigestComparison) -> Iterator[Block]:
    """The blocks of ``verify`` that are about digests."""
    digests, side = found.digests, found.side
    rows = [("digests", f"{digests.path} ({digests.algorithm})"), ("checkpoint", f"{side.path} ({side.what})")]
    words = f"{plural(found.compared, 'tensor')}, {format_bytes(found.nbytes)}, by {digests.names} names"
    rows.append(("compared", words))
    yield Pairs(_verdict(found), (*rows, *(("note", note) for note in (*side.notes, *found.notes))))
    for title, names in _lists(found):
        if names:
            yield Table(titled(title, names), ("tensor",), tuple((name,) for name in names[:MOST_ROWS]))
    if found.incomparable:
        others = tuple((each.name, each.why) for each in found.incomparable[:MOST_ROWS])
        yield Table(titled("not compared", found.incomparable), ("tensor", "why"), others)


def _verdict(found: DigestComparison) -> str:
    if found.differs:
        return "different"
    if found.incomparable:
        return "not all could be compared"
    return "the digests are the same" if found.nbytes else "nothing was compared"


def _lists(found: DigestComparison) -> tuple[tuple[str, list[str]], ...]:
    return (
        ("different", found.different),
        ("missing in the checkpoint", found.missing),
        ("in the checkpoint alone", found.extra),
    )


def digest_comparison_dict(found: DigestComparison) -> dict[str, Any]:
    """The data about digests that ``verify --json`` prints."""
    return {
        "path": found.digests.path,
        "algorithm": found.digests.algorithm,
        "names": found.digests.names,
        "compared": found.compared,
        "nbytes": found.nbytes,
        "different": found.different,
        "missing": found.missing,
        "extra": found.extra,
        "not_compared": [{"name": each.name, "why": each.why} for each in found.incomparable],
        "notes": [*found.side.notes, *found.notes],
    }


def _digests_line(found: Digests) -> str:
    return f"{len(found.tensors)} tensors, {found.algorithm}, {found.names} names: {found.path}"


def _comparison_line(found: DigestComparison) -> str:
    return f"{_verdict(found)}, {found.compared} tensors compared: {found.digests.path} and {found.side.path}"


Digests.face = Face(
    _digests_line,
    lambda found: plain_text(digest_blocks(found)),
    digests_dict,
    lambda found: blocks_html(digest_blocks(found)),
)
DigestComparison.face = Face(
    _comparison_line,
    lambda found: plain_text(digest_comparison_blocks(found)),
    digest_comparison_dict,
    lambda found: blocks_html(digest_comparison_blocks(found)),
)
